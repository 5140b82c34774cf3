"""`python -m facemetric` is the command `facemetric`."""

from facemetric.cli import main

if __name__ == "__main__":
    main()
