"""What the launcher (torchrun, srun, deepspeed) tells a process through its environment. Imports nothing heavy."""

import os


def launched_world_size() -> int:
    """Number of ranks, from WORLD_SIZE; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """This process's rank, from RANK; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def launched_local_rank() -> int:
    """This process's rank among those of its machine, from LOCAL_RANK; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))
