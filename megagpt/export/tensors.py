"""A model's parameters as another software's tensors, made one at a time while they are written.

In: a source and a layout. Out: names and shapes now, values when asked for. Never holds more than the largest of a
layer's matrices a few times; the token table comes in blocks of rows no larger than that.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.errors import ConfigError
from megagpt.formats.layouts import Layout
from megagpt.formats.source import ModelSource
from megagpt.model.names import TOKEN_EMBEDDING, layer_shapes, local_shape
from megagpt.model.spec import ModelSpec


@dataclass(frozen=True)
class OutTensor:
    """One tensor to write. `parts` gives its values in order, contiguous blocks of whole rows in `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Callable[[], Iterator[Tensor]]

    @property
    def num_bytes(self) -> int:
        """Of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def out_tensors(
    source: ModelSource, layout: Layout, dtype: str, num_token_rows: int, tensor_rank: int = 0, tensor_ranks: int = 1
) -> list[OutTensor]:
    """All tensors of one tensor rank in the order of the forward pass; `num_token_rows`: of the whole token table.

    Writing them raises ConfigError where a weight is too large for `dtype`.
    """
    assert num_token_rows % tensor_ranks == 0, (num_token_rows, tensor_ranks)
    spec, stored = source.spec, getattr(torch, dtype)
    rows = num_token_rows // tensor_ranks
    tensors = [
        OutTensor(
            layout.tokens, (rows, spec.hidden_size), stored, _token_parts(source, dtype, tensor_rank * rows, rows)
        )
    ]
    for name, info in source.infos.items():
        if name != TOKEN_EMBEDDING:
            shape = local_shape(info, tensor_ranks)
            if layout.shape_of(name, spec) != info.shape:
                shape = shape[::-1]
            parts = _whole(source, layout, name, dtype, tensor_rank, tensor_ranks)
            tensors.append(OutTensor(layout.name_of(name), shape, stored, parts))
    return tensors


def round_to(value: Tensor, name: str, dtype: str) -> Tensor:
    """A parameter in `dtype`. Raises ConfigError where it becomes infinite."""
    rounded = value.to(getattr(torch, dtype))
    if rounded.is_meta or rounded is value:
        return rounded
    if not bool(rounded.isfinite().all()) and bool(value.isfinite().all()):
        raise ConfigError(
            f"{name} holds {float(value.abs().max()):.4g}, too large for --dtype {dtype}; use bfloat16 or float32"
        )
    return rounded


def block_rows(spec: ModelSpec) -> int:
    """Rows of the token table in a block: as many values as the largest of a layer's parameters has."""
    largest = max(torch.Size(info.shape).numel() for info in layer_shapes(spec).values())
    return max(1, largest // spec.hidden_size)


def _whole(
    source: ModelSource, layout: Layout, name: str, dtype: str, tensor_rank: int, tensor_ranks: int
) -> Callable[[], Iterator[Tensor]]:
    def parts() -> Iterator[Tensor]:
        value = source.read(name) if tensor_ranks == 1 else source.read_slice(name, tensor_rank, tensor_ranks)
        rounded = round_to(value, name, dtype)
        del value
        yield layout.convert(name, rounded, source.spec).contiguous()

    return parts


def _token_parts(source: ModelSource, dtype: str, first: int, num_rows: int) -> Callable[[], Iterator[Tensor]]:
    def parts() -> Iterator[Tensor]:
        held, step = source.spec.padded_vocab_size, block_rows(source.spec)
        for start in range(first, first + num_rows, step):
            stop = min(start + step, first + num_rows)
            if start < held:
                values = source.read_rows(TOKEN_EMBEDDING, start, min(stop, held))
                yield round_to(values, TOKEN_EMBEDDING, dtype).contiguous()
            if stop > held:  # rows that pad theirs beyond ours
                yield torch.zeros(stop - max(start, held), source.spec.hidden_size, dtype=getattr(torch, dtype))

    return parts
