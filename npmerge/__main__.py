"""`python -m npmerge`."""

from npmerge.cli import main

if __name__ == "__main__":
    main()
