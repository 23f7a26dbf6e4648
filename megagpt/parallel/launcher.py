"""What the launcher (torchrun, srun, deepspeed) tells a process through its environment. Imports nothing heavy."""

import os
import re
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
    """Set what a launcher did not: ranks from srun's variables, and what launch/env.sh sets. Before torch is imported.

    DeepSpeed's launcher gives processes on other machines few variables of the first, and sets no number of threads.
    """
    num_tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" not in environment and num_tasks != "1":
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        environment["WORLD_SIZE"] = num_tasks
        # how many tasks each node has, as "8(x4)" or "8,4"
        environment["LOCAL_WORLD_SIZE"] = re.split(r"[(,]", environment["SLURM_STEP_TASKS_PER_NODE"])[0]
        environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
        # from the job's number, so that two jobs on a node do not collide
        environment.setdefault("MASTER_PORT", str(20_000 + int(environment["SLURM_JOB_ID"]) % 20_000))
    if "LOCAL_SIZE" in environment:  # DeepSpeed's word for it
        environment.setdefault("LOCAL_WORLD_SIZE", environment["LOCAL_SIZE"])
    ranks_here = int(environment.get("LOCAL_WORLD_SIZE") or "1")
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks_here)))
    if environment.get("NET_INTERFACE"):
        environment.setdefault("NCCL_SOCKET_IFNAME", environment["NET_INTERFACE"])
        environment.setdefault("GLOO_SOCKET_IFNAME", environment["NET_INTERFACE"])
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes: of `gpu[003-010,12],login1` it is `gpu003`; rank 0 runs there."""
    match = re.match(r"([^\[,]*)(?:\[(\d+)[^\]]*\]([^\[,]*))?", nodes)
    assert match is not None, nodes
    return "".join(part or "" for part in match.groups())
