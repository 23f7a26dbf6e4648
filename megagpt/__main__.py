"""`python -m megagpt ...`: the same as `megagpt ...`."""

import sys

from megagpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
