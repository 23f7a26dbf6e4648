"""torch.compile of the regions between matrix products (train.compile): the one place that calls it.

A region is a plain function of tensors and constants, compiled whole, for exactly the shapes it is given: a graph break
is an error, and a step whose shapes do not change compiles nothing new. Random numbers are drawn outside, by seed.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from megagpt.errors import ConfigError
from megagpt.kernels.triton_use import has_triton


@cache
def compiled(region: Callable[..., Any]) -> Callable[..., Any]:
    """The region as compiled code; compiling begins at its first call with tensors of new shapes."""
    return torch.compile(region, fullgraph=True, dynamic=False)


def check_compile(device: torch.device) -> None:
    """Raises ConfigError where torch.compile cannot make code for this device."""
    if device.type == "cuda":
        if not has_triton():
            raise ConfigError("train.compile = true needs Triton on GPUs; install triton, or use train.compile = false")
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError(
            "train.compile = true needs a C++ compiler on CPUs; install g++, name one in CXX, "
            "or use train.compile = false"
        )
