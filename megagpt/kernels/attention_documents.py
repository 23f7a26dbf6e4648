"""What a token may see: earlier tokens, and, where packed documents are kept apart, those of its own document alone.

In: the number of each token's document. Out: the form that each way of attending takes it in, made once for all layers
of a micro-batch and only when asked for.

Legend: B micro-batch, S positions, Q query positions, K key positions.
"""

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

# the fewest tokens of a piece: attention over less costs more to call than to compute. Measured on one core for
# documents of 20 to 500 tokens, forward and backward: pieces of 1, 64, 128 and 256 (bf16 and fp32)
_PIECE_TOKENS = 64


def document_mask(documents: Tensor) -> Tensor:
    """Which keys each query may see when packed documents are kept apart.

    documents [B, S] int: number of the document each token belongs to. Returns [B, 1, S, S] bool, True where the key
    is of the query's document and not later than it.
    """
    same = documents[:, :, None] == documents[:, None, :]
    return (same & causal_mask(documents.shape[1], documents.shape[1], documents.device))[:, None]


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """[Q, K] bool, True where the key is not later than the query; the last query is the last key."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=num_keys - num_queries)


class Bounds(NamedTuple):
    """[B, S] int32, rising along the sequence: where each token's document begins, and where it ends (exclusive)."""

    starts: Tensor
    ends: Tensor


class Lengths(NamedTuple):
    """All documents of a micro-batch, end to end: their bounds [documents + 1] int32, and the longest's tokens."""

    bounds: Tensor
    longest: int


class Piece(NamedTuple):
    """Neighbouring documents of a sequence: tokens `begin` … `end` - 1."""

    begin: int
    end: int
    num_documents: int


class PackedDocuments:
    """The documents of a micro-batch's sequences. documents [B, S] int: number of each token's, rising from 0."""

    def __init__(self, documents: Tensor) -> None:
        self.documents = documents.contiguous()

    @cached_property
    def mask(self) -> Tensor:
        """[B, 1, S, S] bool."""
        return document_mask(self.documents)

    @cached_property
    def bounds(self) -> Bounds:
        """For kernels that skip what no query of a tile sees. Leaves the device alone to its work."""
        starts = torch.searchsorted(self.documents, self.documents, out_int32=True)
        return Bounds(starts, torch.searchsorted(self.documents, self.documents, out_int32=True, right=True))

    @cached_property
    def lengths(self) -> Lengths:
        """For attention over sequences of any length. Waits for the device: how many there are is known there alone."""
        places = torch.arange(self.documents.shape[1], device=self.documents.device, dtype=torch.int32)
        begins = (self.bounds.starts == places).flatten().nonzero().flatten().int()
        end = torch.full((1,), self.documents.numel(), dtype=torch.int32, device=self.documents.device)
        bounds = torch.cat((begins, end))
        return Lengths(bounds, int(bounds.diff().max()))

    @cached_property
    def pieces(self) -> list[list[Piece]]:
        """Each sequence cut between documents, into pieces as small as are worth a call. Waits for the device."""
        return [_cut(torch.unique_consecutive(row, return_counts=True)[1].tolist()) for row in self.documents]

    @cached_property
    def flex_blocks(self) -> Any:
        """torch's BlockMask, whose wholly masked blocks flex attention skips (Dong et al. 2024)."""
        from torch.nn.attention.flex_attention import create_block_mask

        documents = self.documents

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (documents[batch, query] == documents[batch, key])

        size, length = documents.shape
        return create_block_mask(sees, size, None, length, length, device=documents.device)


def _cut(lengths: list[int]) -> list[Piece]:
    """Pieces of at least _PIECE_TOKENS tokens; the last may have fewer."""
    pieces, begin, end, count = [], 0, 0, 0
    for number, length in enumerate(lengths, start=1):
        end, count = end + length, count + 1
        if end - begin >= _PIECE_TOKENS or number == len(lengths):
            pieces.append(Piece(begin, end, count))
            begin, count = end, 0
    return pieces
