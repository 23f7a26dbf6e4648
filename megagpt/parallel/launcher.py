"""What the launcher (torchrun, srun, deepspeed) tells a process through its environment. Imports nothing heavy."""

import os
from collections.abc import MutableMapping


def launched_world_size() -> int:
    """Number of ranks, from WORLD_SIZE; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """This process's rank, from RANK; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def launched_local_rank() -> int:
    """This process's rank among those of its machine, from LOCAL_RANK; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def complete_environment(environment: MutableMapping[str, str]) -> None:
    """Set what launch/env.sh sets, where a launcher did not bring it along; before torch is imported.

    DeepSpeed's launcher gives processes on other machines few variables of the first, and sets no number of threads.
    """
    ranks_here = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or "1")  # torchrun, deepspeed
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks_here)))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
