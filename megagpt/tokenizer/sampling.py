"""A bounded, reproducible sample of a corpus's texts, for training a tokenizer and for judging it.

In: texts, a budget in bytes. Out: pieces of texts. Every piece of the corpus has the same chance; memory is bounded by
the budgets whatever the corpus's size. Knows nothing of tokenizers.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

PIECE_CHARACTERS = 16_384  # texts are sampled in pieces of this size, so that one huge document cannot be all of it
_HELD_OUT_SHARE = 0.02


class TextSample(NamedTuple):
    """Pieces in corpus order. No held-out piece is among the training pieces."""

    training: list[str]
    held_out: list[str]
    corpus_bytes: int  # UTF-8
    training_bytes: int


def sample_texts(texts: Iterable[str], max_training_bytes: int, max_held_out_bytes: int, seed: int) -> TextSample:
    """Sample `texts`: about 2 % of the pieces are held out. A corpus within the budgets is used whole.

    A piece's place in the order of selection is a hash of (seed, its number), so the sample does not depend on the
    machine and is the same for the same texts.
    """
    training = _LowestKeys(max_training_bytes)
    held_out = _LowestKeys(max_held_out_bytes)
    corpus_bytes = 0
    for number, piece in enumerate(_pieces(texts)):
        size = len(piece.encode("utf-8"))
        corpus_bytes += size
        digest = hashlib.sha256(f"{seed}/tokenizer sample/{number}".encode()).digest()
        chance = int.from_bytes(digest[:8], "little") / 2**64
        chosen = held_out if chance < _HELD_OUT_SHARE else training
        chosen.offer(int.from_bytes(digest[8:16], "little"), number, piece, size)
    return TextSample(training.pieces(), held_out.pieces(), corpus_bytes, training.size_bytes)


class _LowestKeys:
    """The pieces with the lowest keys that fit in a budget."""

    def __init__(self, max_bytes: int) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._heap: list[tuple[int, int, str, int]] = []  # (-key, number, piece, bytes): the highest key is first
        self._limit = 1 << 64  # no key from here on can be in the sample any more

    def offer(self, key: int, number: int, piece: str, size: int) -> None:
        """Take the piece if its key is among the lowest so far."""
        if key >= self._limit:
            return
        heapq.heappush(self._heap, (-key, number, piece, size))
        self.size_bytes += size
        while self.size_bytes > self._max_bytes and len(self._heap) > 1:
            dropped_key, _, _, dropped_size = heapq.heappop(self._heap)
            self.size_bytes -= dropped_size
            self._limit = -dropped_key

    def pieces(self) -> list[str]:
        """Those taken, in the order of their numbers."""
        return [piece for _, _, piece, _ in sorted(self._heap, key=lambda item: item[1])]


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Texts cut to pieces, after a newline where there is one in the piece's second half."""
    for text in texts:
        start = 0
        while start < len(text):
            end = start + PIECE_CHARACTERS
            if end < len(text):
                newline = text.rfind("\n", start + PIECE_CHARACTERS // 2, end)
                end = newline + 1 if newline >= 0 else end
            yield text[start:end]
            start = end
