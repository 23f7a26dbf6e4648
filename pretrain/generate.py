"""Text from a trained model: `python pretrain/generate.py CHECKPOINT --prompt TEXT`. The same as `megagpt generate`."""

import sys

from megagpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
