"""Peak bytes of tensors that operations make, whether they have values or only shapes."""

import weakref
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class PeakBytes(TorchDispatchMode):
    """Active within `with`: `most` bytes that storages made within it held at once.

    Storages of a size in `apart` are counted in `most_with_apart` alone.
    """

    def __init__(self, apart: Collection[int] = ()) -> None:
        super().__init__()
        self.most = self.most_with_apart = 0
        self._now = [0, 0]
        self._apart = frozenset(apart)
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def die(_: object) -> None:
            self._now[size in self._apart] -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, die)
        self._now[size in self._apart] += size
        self.most = max(self.most, self._now[0])
        self.most_with_apart = max(self.most_with_apart, sum(self._now))
