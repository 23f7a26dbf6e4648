"""Whose turn each sample of a blend is. In: weights. Out: the corpus of sample n and its number among that corpus's.

With shares p_i = weight_i / sum of weights, after n samples corpus i has given x_i(n), and |x_i(n) - n p_i| < 1 for
every n and i. The rule: sample j of corpus i (from 0) may come from place floor(j / p_i) on and must come before place
ceil((j + 1) / p_i); each place goes to the corpus whose next sample may come and must come soonest, the first named of
several. docs/blends.md proves that this always works. All in whole numbers: weights are the decimals they are written
as. After `period` samples, the sum of the weights in lowest terms, the order begins again. Knows nothing of data.
"""

from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megagpt.data.index_core import index_core
from megagpt.errors import DataError

MAX_CORPORA = 1 << 16
_MAX_PERIOD = 1 << 60  # the native module adds two of them
_BLOCK = 4096  # samples between two places where the counts are kept: 8 bytes a corpus
_CACHED_BLOCKS = 4


class Turns(NamedTuple):
    """Of some samples: whose each is, and its number among the corpus's own."""

    corpora: NDArray[np.int64]
    numbers: NDArray[np.int64]


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The weights in lowest terms as whole numbers; 0.1 is a tenth, not the binary number nearest to it.

    Raises DataError where they have too many digits.
    """
    assert 0 < len(weights) <= MAX_CORPORA, len(weights)
    assert min(weights) > 0, weights
    exact = [Fraction(repr(weight)) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = gcd(*whole)
    lowest = [weight // divisor for weight in whole]
    if sum(lowest) > _MAX_PERIOD:
        raise DataError(
            f"the weights {', '.join(f'{weight:g}' for weight in weights)} of data.corpora have too many digits "
            f"together: as whole numbers they sum to {sum(lowest):.1e}, and at most {_MAX_PERIOD:.1e} can be kept "
            "exactly; round them"
        )
    return lowest


class BlendOrder:
    """Random access to the turns of a blend: a pure function of the weights.

    To reach sample n for the first time, the turns before it are gone through once, at most one period of them, 3 to 12
    ns each in the native module; after that any sample costs at most one block of 4096.
    """

    def __init__(self, weights: Sequence[float], native: bool = True) -> None:
        """Raises DataError where the weights have too many digits."""
        self.weights = np.array(whole_weights(weights), dtype=np.int64)
        self.period = int(self.weights.sum())
        self._core = index_core(native)
        self._counts = [np.zeros(len(self.weights), dtype=np.int64)]  # before each block
        self._blocks: OrderedDict[int, Turns] = OrderedDict()

    def turns(self, samples: NDArray[np.int64]) -> Turns:
        """Whose each of some samples is."""
        cycles, rest = np.divmod(np.asarray(samples, dtype=np.int64), self.period)
        blocks, within = np.divmod(rest, _BLOCK)
        corpora, numbers = np.empty_like(rest), np.empty_like(rest)
        for block in np.unique(blocks).tolist():
            chosen = blocks == block
            turns = self._block(block)
            corpora[chosen] = turns.corpora[within[chosen]]
            numbers[chosen] = turns.numbers[within[chosen]]
        return Turns(corpora, numbers + cycles * self.weights[corpora])

    def counts(self, samples: int) -> NDArray[np.int64]:
        """How many of the first `samples` samples each corpus gives."""
        cycles, rest = divmod(samples, self.period)
        block, within = divmod(rest, _BLOCK)
        counts = self._counts_before(block).copy()
        self._core.blend(self.weights, counts, rest - within, within, None, None)
        return counts + cycles * self.weights

    def _block(self, block: int) -> Turns:
        if block not in self._blocks:
            first = block * _BLOCK
            size = min(_BLOCK, self.period - first)
            corpora, numbers = np.empty(size, dtype=np.uint16), np.empty(size, dtype=np.int64)
            self._core.blend(self.weights, self._counts_before(block).copy(), first, size, corpora, numbers)
            if len(self._blocks) >= _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
            self._blocks[block] = Turns(corpora.astype(np.int64), numbers)
        return self._blocks[block]

    def _counts_before(self, block: int) -> NDArray[np.int64]:
        while len(self._counts) <= block:
            counts = self._counts[-1].copy()
            self._core.blend(self.weights, counts, (len(self._counts) - 1) * _BLOCK, _BLOCK, None, None)
            self._counts.append(counts)
        return self._counts[block]
