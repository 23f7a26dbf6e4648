"""`python -m megagpt.launch.rank CONFIG …`: one rank, under a launcher. The same as pretrain/pretrain_gpt.py."""

import os
import sys

from megagpt.parallel.launcher import complete_environment

if __name__ == "__main__":
    complete_environment(os.environ)
    from megagpt.training.cli import main

    sys.exit(main(sys.argv[1:]))
