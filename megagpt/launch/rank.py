"""`python -m megagpt.launch.rank CONFIG …`: one rank, under a launcher. The same as pretrain/pretrain_gpt.py.

But for one thing: where a restart would not help it says so to the agent (`agent.py`), as torchrun restarts ranks
whatever they ended with.
"""

import os
import sys

from megagpt.launch.restarts import NO_RESTART, no_restart_signal
from megagpt.parallel.launcher import complete_environment

AGENT_VARIABLE = "MEGAGPT_AGENT"  # pid of the agent that started this process


def main(argv: list[str]) -> int:
    """Train; an exit status of training/exit_status.py."""
    complete_environment(os.environ)
    from megagpt.training.cli import main as train

    status = train(argv)
    if status in NO_RESTART and os.environ.get(AGENT_VARIABLE) == str(os.getppid()):
        sys.stdout.flush()
        sys.stderr.flush()
        os.kill(os.getppid(), no_restart_signal(status))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
