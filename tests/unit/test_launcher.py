"""What a process takes from its launcher's environment, and what it adds where the launcher brought too little."""

import os

import pytest

from megagpt.parallel.launcher import complete_environment, first_host

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        ({}, CORES),
        ({"LOCAL_WORLD_SIZE": "1"}, CORES),
        ({"LOCAL_SIZE": str(CORES)}, 1),
        ({"LOCAL_SIZE": str(2 * CORES)}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "7"}, 7),
    ],
)
def test_threads_are_the_cores_that_the_ranks_of_a_machine_share(launcher: dict[str, str], threads: int) -> None:
    environment = dict(launcher)
    complete_environment(environment)
    assert environment["OMP_NUM_THREADS"] == str(threads)


def test_one_variable_names_the_network_interface() -> None:
    environment = {"NET_INTERFACE": "ib0", "GLOO_SOCKET_IFNAME": "eth0"}
    complete_environment(environment)
    assert environment["NCCL_SOCKET_IFNAME"] == "ib0"
    assert environment["GLOO_SOCKET_IFNAME"] == "eth0"


def test_what_is_set_stays() -> None:
    environment: dict[str, str] = {}
    complete_environment(environment)
    assert environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"
    environment = {"CUDA_DEVICE_MAX_CONNECTIONS": "32", "TOKENIZERS_PARALLELISM": "true"}
    complete_environment(environment)
    assert environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"
    assert environment["TOKENIZERS_PARALLELISM"] == "true"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node2,node1", "node2"),
        ("gpu[003-010,12],login1", "gpu003"),
        ("a-[7,9]-ib,b1", "a-7-ib"),
        ("rack1.node[12-13]", "rack1.node12"),
    ],
)
def test_the_first_of_slurms_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def srun(**variables: str) -> dict[str, str]:
    """A task of `srun` with 12 tasks on nodes of 8 and 4."""
    return {
        "SLURM_STEP_NUM_TASKS": "12",
        "SLURM_STEP_TASKS_PER_NODE": "8,4",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "40003",
        **variables,
    }


def test_ranks_are_those_of_srun() -> None:
    environment = srun()
    complete_environment(environment)
    assert {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")} == {
        "RANK": "9",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "12",
    }
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("node1", "20003")
    assert environment["OMP_NUM_THREADS"] == str(max(1, CORES // 8))


def test_srun_is_overruled_by_what_is_set() -> None:
    environment = srun(MASTER_ADDR="10.0.0.1", MASTER_PORT="7")
    complete_environment(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "7")
    environment = srun(RANK="3", WORLD_SIZE="4")  # torchrun, started by srun
    complete_environment(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("3", "4")
    assert "MASTER_ADDR" not in environment
    environment = srun(SLURM_STEP_NUM_TASKS="1")
    complete_environment(environment)
    assert "RANK" not in environment
