"""What torchrun, srun and deepspeed start: `torchrun … pretrain/pretrain_gpt.py CONFIG [--section.key VALUE ...]`."""

import os
import sys

from megagpt.parallel.launcher import complete_environment
from megagpt.training.cli import main

if __name__ == "__main__":
    complete_environment(os.environ)
    sys.exit(main(sys.argv[1:]))
