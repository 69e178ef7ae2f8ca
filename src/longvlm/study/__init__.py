"""The paper's claims, tested: small language models trained alike on differently made visual tokens."""
