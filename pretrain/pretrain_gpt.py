"""What torchrun, srun and deepspeed start: `torchrun … pretrain/pretrain_gpt.py CONFIG [--section.key VALUE ...]`."""

import sys

from megagpt.training.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
