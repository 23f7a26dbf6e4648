"""A model for other software: `python pretrain/export.py CHECKPOINT --output DIR`. The same as `megagpt export`."""

import sys

from megagpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
