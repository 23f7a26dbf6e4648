"""What megatron-core and DeepSpeed need to run without CUDA. Applied only where torch sees no CUDA device, only here.

megatron-core allocates communication buffers on `torch.cuda.current_device()` and writes `device="cuda"` in its
schedules. Each module listed below gets a stand-in for its global name `torch` that answers these with the CPU and
passes everything else through; torch itself is not touched.
"""

import importlib
import os
import sys
import types
from typing import Any

import torch

# module: the upstream lines answered (megatron-core 0.16.1)
PATCHED_MODULES = {
    "megatron.core.tensor_parallel.layers": "layers.py:552,597,607 buffers on torch.cuda.current_device()",
    "megatron.core.tensor_parallel.mappings": "mappings.py:91,141,148,181 buffers on torch.cuda.current_device()",
    "megatron.core.tensor_parallel.utils": "utils.py:70,91 buffers on torch.cuda.current_device()",
    "megatron.core.pipeline_parallel.p2p_communication": "p2p_communication.py:242,313,321,398 buffers, synchronize",
    "megatron.core.utils": "utils.py:631 global memory buffer on torch.cuda.current_device()",
    "megatron.core.pipeline_parallel.schedules": 'schedules.py:596,983,2138 torch.zeros(..., device="cuda")',
}


class _CpuStream:
    """A stream that has nothing to wait for."""

    def wait_stream(self, stream: Any) -> None:
        """Returns at once: CPU work is done when its call returns."""


class _CpuInPlaceOfCuda(types.ModuleType):
    """`torch.cuda` as megatron-core uses it, on the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    @staticmethod
    def current_device() -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @staticmethod
    def synchronize() -> None:
        """Returns at once: CPU work is done when its call returns."""

    @staticmethod
    def current_stream() -> _CpuStream:
        """A stream that has nothing to wait for."""
        return _CpuStream()


class _TorchWithoutCuda(types.ModuleType):
    """`torch` with `cuda` replaced and a literal `device="cuda"` of `torch.zeros` rewritten."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.cuda = _CpuInPlaceOfCuda("torch.cuda")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, **options: Any) -> torch.Tensor:
        """`torch.zeros` on the CPU; the arguments are torch's own."""
        if options.get("device") == "cuda":
            options["device"] = "cpu"
        return torch.zeros(*size, **options)


def patch_megatron_for_cpu() -> None:
    """Make megatron-core's tensor and pipeline parallelism run on the CPU; safe to call twice.

    Every rank calls it before building layers. Does nothing where CUDA is available.
    """
    if torch.cuda.is_available():
        return
    for name in PATCHED_MODULES:
        module = importlib.import_module(name)
        if not isinstance(module.torch, _TorchWithoutCuda):
            module.torch = _TorchWithoutCuda()  # type: ignore[attr-defined]


def patch_deepspeed_for_cpu() -> None:
    """Make DeepSpeed start on the CPU without a compiler and accept fp16; safe to call twice.

    Every rank calls it before `deepspeed.init_distributed`. Does nothing where CUDA is available.
    """
    if torch.cuda.is_available():
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # said before its first import, it does not warn of what it guessed
    import deepspeed.comm.torch  # noqa: F401  (the attribute of that name is torch itself: comm/comm.py imports it)
    from deepspeed.accelerator import get_accelerator

    # comm/torch.py:207 compiles a shared-memory all-reduce at every first start (about 20 s); only inference uses it
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    # accelerator/cpu_accelerator.py:228 refuses fp16 without AVX512-FP16; torch computes it on any CPU, only slower
    get_accelerator().is_fp16_supported = lambda: True
