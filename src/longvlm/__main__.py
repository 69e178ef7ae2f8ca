"""`python -m longvlm` is `longvlm`."""

from longvlm.cli import main

if __name__ == "__main__":
    main()
