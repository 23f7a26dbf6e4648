"""Where the host reads a tensor's values, which on a GPU makes it wait for the device. Seen on the CPU too.

In: code that runs within `HostReads`. Out: each reading with the place in our code, or in DeepSpeed's, that made it.
"""

import traceback
from collections import Counter
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# operators that read values on the host, or whose result's shape depends on values
_READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
# methods that read values without an operator where the tensor is on the CPU already
_METHODS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
_OURS = ("megagpt/", "deepspeed/", "megatron/core/")


class HostReads:
    """Counts readings by place within `with`: {"megagpt/training/signs.py: read_from_device": 1}."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self._modes = (_Functions(self), _Operators(self))

    def __enter__(self) -> "HostReads":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*reason)

    def note(self) -> None:
        """A reading happens now."""
        for frame in reversed(traceback.extract_stack()[:-2]):
            path = PurePath(frame.filename).as_posix()
            found = next((path.rindex(part) for part in _OURS if part in path), None)
            if found is not None:
                self.places[f"{path[found:]}: {frame.name}"] += 1
                return
        self.places["elsewhere"] += 1


class _Functions(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METHODS:
            self._reads.note()
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS or _counts_a_mask(func, args):
            self._reads.note()
        return func(*args, **(kwargs or {}))


def _counts_a_mask(func: Any, args: Any) -> bool:
    """Whether it is indexing by a mask, whose true values are counted.

    One number assigned to what a mask selects is a masked fill (aten/native/TensorAdvancedIndexing.cpp).
    """
    if func not in (aten.index.Tensor, aten.index_put_.default):
        return False
    if func is aten.index_put_.default and args[2].numel() == 1 and args[2].device.type == "cpu":
        return False
    return any(part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1])
