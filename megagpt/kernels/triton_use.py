"""Whether an operation may run as one of our Triton kernels. Every file with such kernels asks here, nobody else.

Triton comes with CUDA builds of torch. On the CPU its interpreter runs the same kernels, slowly, where
TRITON_INTERPRET=1 was set before Triton was imported: tests do so, and ask for a kernel by name; nothing chooses it
there by itself.
"""

import importlib.util
import os
from functools import cache

from torch import Tensor


@cache
def has_triton() -> bool:
    """Whether Triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs kernels in this process."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_triton(tensor: Tensor) -> bool:
    """Whether our Triton kernels are the ones to run on this tensor: on a CUDA device with Triton installed."""
    return tensor.is_cuda and has_triton()
