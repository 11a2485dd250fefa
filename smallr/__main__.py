"""Runs `python -m smallr COMMAND …` as `smallr COMMAND …`."""

import sys

from smallr.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
