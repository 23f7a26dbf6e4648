"""Loss of a checkpoint on held-out text: `python pretrain/evaluate_gpt.py CHECKPOINT`, as `megagpt evaluate`."""

import sys

from megagpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
