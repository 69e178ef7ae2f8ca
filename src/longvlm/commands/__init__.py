"""What the commands of `longvlm` do; `longvlm.cli` holds their names and options."""
