"""The maths of serving samples, native where it was built, else in NumPy with the same results."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megagpt.data import index_numpy
from megagpt.data.index_numpy import Documents

try:
    from megagpt.native import _samples
except ImportError:  # no compiler when it was installed
    _samples = None  # type: ignore[assignment]

NOTE = (
    "samples are served by NumPy, several times slower than by megagpt.native._samples, which was not built: install a "
    "C++ compiler and run `pip install -e .` again"
)


class IndexCore(Protocol):
    """What megagpt.native._samples and index_numpy both do; index_numpy says what it means."""

    def order(self, key: bytes | None, count: int, numbers: NDArray[np.int64], out: NDArray[np.int64], /) -> None:
        """Places of an order."""

    def split_totals(self, documents: Documents, /) -> tuple[int, int]:
        """Documents and tokens of a split."""

    def group_starts(self, documents: Documents, key: bytes | None, group: int, out: NDArray[np.int64], /) -> None:
        """The index of an epoch."""

    def gather(
        self,
        tokens: Any,
        type_name: str,
        documents: Documents,
        key: bytes | None,
        starts: Any,
        group: int,
        window_key: bytes | None,
        num_windows: int,
        numbers: NDArray[np.int64],
        rows: NDArray[np.int64],
        length: int,
        out: NDArray[np.int64],
        /,
    ) -> None:
        """Tokens of samples."""

    def blend(
        self,
        weights: NDArray[np.int64],
        counts: NDArray[np.int64],
        first: int,
        size: int,
        ids: NDArray[np.uint16] | None,
        numbers: NDArray[np.int64] | None,
        /,
    ) -> None:
        """Turns of a blend."""


def index_core(native: bool = True) -> IndexCore:
    """The native module where it was built and is wanted, else NumPy's."""
    return _samples if native and _samples is not None else index_numpy  # type: ignore[return-value]


def is_native(core: IndexCore) -> bool:
    """Whether it is the native module."""
    return core is _samples
