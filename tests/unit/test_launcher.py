"""What a process takes from its launcher's environment, and what it adds where the launcher brought too little."""

import os

import pytest

from megagpt.parallel.launcher import complete_environment

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


def test_what_is_set_stays() -> None:
    environment: dict[str, str] = {}
    complete_environment(environment)
    assert environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"
    environment = {"CUDA_DEVICE_MAX_CONNECTIONS": "32", "TOKENIZERS_PARALLELISM": "true"}
    complete_environment(environment)
    assert environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"
    assert environment["TOKENIZERS_PARALLELISM"] == "true"
