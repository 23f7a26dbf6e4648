"""Freed memory stays with the process: a buffer that is made again costs no page faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from megagpt.training.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):  # until the heap has grown
    torch.ones(16, 1 << 20)
before = faults()
for _ in range(10):
    torch.ones(16, 1 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_a_buffer_that_is_made_again_costs_no_page_faults() -> None:
    counts = {
        mode: int(
            subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True).stdout
        )
        for mode in ("keep", "give back")
    }
    assert counts["keep"] < 100, counts
    assert counts["give back"] > 10_000, counts  # ten times 64 MiB in pages of 4 KiB
