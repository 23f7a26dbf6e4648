"""A corpus that is too large to exist: arrays whose entries follow from their places, for the index maths."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from megagpt.data.index_numpy import Documents
from megagpt.data.splits import PLACES

PRIME = 1_000_003


class VirtualArray:
    """An array of `size` entries; entry i is made from i when it is looked at."""

    def __init__(self, size: int, step: int, constant: int = 0) -> None:
        self.size, self.step, self.constant = size, step, constant

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, places: Any) -> Any:
        if isinstance(places, slice):
            return np.arange(places.start, places.stop) * self.step + self.constant
        places = np.asarray(places)
        assert ((places >= 0) & (places < self.size)).all(), places
        return places * self.step + self.constant

    def searchsorted(self, values: NDArray[np.int64], side: str) -> NDArray[np.int64]:
        """As an array's own, for a rising one that begins at 0."""
        assert side == "right"
        assert self.constant == 0
        return np.minimum(values // self.step + 1, self.size)


class VirtualTokens:
    """Token number i is i modulo a prime."""

    def __getitem__(self, places: slice) -> NDArray[np.int64]:
        return np.arange(places.start, places.stop) % PRIME


def virtual_documents(num_documents: int, tokens_each: int) -> Documents:
    """Documents of equal lengths, two bytes a token, all in one split."""
    return Documents(
        lengths=VirtualArray(num_documents, 0, tokens_each),
        pointers=VirtualArray(num_documents, 2 * tokens_each),
        bounds=None,
        item_bytes=2,
        end_bytes=2 * tokens_each * num_documents,
        low=0,
        high=PLACES,
    )


def virtual_starts(num_documents: int, tokens_each: int, group: int) -> VirtualArray:
    """The index of an epoch of them, where `group` divides their number."""
    assert num_documents % group == 0
    return VirtualArray(num_documents // group + 1, tokens_each * group)
