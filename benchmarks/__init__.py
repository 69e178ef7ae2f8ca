"""How fast LongVLM is, against what its users would otherwise run: `make bench`."""
