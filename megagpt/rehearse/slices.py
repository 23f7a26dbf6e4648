"""Which part of every parameter a rank holds, as the run's own initialisation fills it; no values are made.

In: a plan and a rank. Out: Slices of the whole model's parameters by name. The model is built by `build_chunks` on the
meta device; a mode that sees every tensor operation reads off which elements of the whole parameter go into which.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from megagpt.errors import TrainingError
from megagpt.model import init
from megagpt.model.names import TOKEN_EMBEDDING, ParameterInfo, parameter_shapes
from megagpt.model.spec import ModelSpec
from megagpt.plan import RunPlan
from megagpt.rehearse.world import fake_world
from megagpt.training import build


class Place(NamedTuple):
    """A rank and where it is on the axes that cut the model. Data and context ranks hold what others hold too."""

    rank: int
    tensor_rank: int
    pipeline_rank: int

    def __str__(self) -> str:
        return f"rank {self.rank} (tensor {self.tensor_rank}, pipeline {self.pipeline_rank})"


@dataclass(frozen=True)
class Slice:
    """Part of one parameter on one rank: indexes `start` to `stop` - 1 of every dim."""

    name: str
    place: Place
    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def num_values(self) -> int:
        """Elements in it."""
        return prod(stop - start for start, stop in zip(self.start, self.stop, strict=True))


def model_places(plan: RunPlan) -> list[Place]:
    """One rank for each tensor and pipeline position, the first on the data and context axes; tensor fastest."""
    layout = plan.layout
    stride = layout.tensor * layout.context * layout.data
    return [
        Place(pipeline_rank * stride + tensor_rank, tensor_rank, pipeline_rank)
        for pipeline_rank in range(layout.pipeline)
        for tensor_rank in range(layout.tensor)
    ]


def slices_of_place(plan: RunPlan, place: Place) -> list[Slice]:
    """What the rank at `place` holds. Raises TrainingError where a parameter is filled from elsewhere than a slice.

    The world is one replica's, without data and context ranks: thousands of ranks would take long to group.
    """
    layout = plan.layout
    replica = replace(layout, world_size=layout.model_ranks, data=1, context=1)
    with fake_world(replica, place.pipeline_rank * layout.tensor + place.tensor_rank) as mesh:
        assert (mesh.tensor_rank, mesh.pipeline_rank) == place[1:], (mesh.tensor_rank, mesh.pipeline_rank, place)
        mesh = replace(mesh, device=torch.device("meta"))
        with torch.device("meta"), recorded_slices(plan.spec, place) as slices:
            mcore = build.make_rank_mcore_config(plan, mesh)
            mcore.use_cpu_initialization = True  # then megatron-core names no device, and gets the meta device
            chunks = build.build_chunks(plan, mesh, mcore)
        for chunk in chunks:
            _check_table_rows(chunk, slices)
    return slices


@contextmanager
def recorded_slices(spec: ModelSpec, place: Place) -> Iterator[list[Slice]]:
    """A list that fills with the slices of every chunk that is initialised within. Whole parameters have no values."""
    slices: list[Slice] = []
    infos = parameter_shapes(spec)
    real_initialise = build.initialise

    def initialise(module: nn.Module, *arguments: Any) -> None:
        with _CopyRecorder() as recorder:
            real_initialise(module, *arguments)
        for name, parameter in module.named_parameters():
            source = recorder.sources.get(parameter.untyped_storage()._cdata)
            if source is None:
                raise TrainingError(f"{name} of {tuple(parameter.shape)} on {place} is never filled")
            slices.append(_slice_of(name, place, source, tuple(parameter.shape), infos[name].shape))

    def no_values(spec: ModelSpec, seed: int, name: str, info: ParameterInfo) -> Tensor:
        return torch.empty(info.shape, device="meta")

    with mock.patch.object(build, "initialise", initialise), mock.patch.object(init, "initial_parameter", no_values):
        yield slices


class _Source(NamedTuple):
    """A view of a whole parameter."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _CopyRecorder(TorchDispatchMode):
    """For every storage that is copied into, by its address, the view that came last."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[int, _Source] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            target, source = args[:2]
            view = _Source(source.storage_offset(), tuple(source.shape), source.stride())
            self.sources[target.untyped_storage()._cdata] = view
            return target
        return func(*args, **(kwargs or {}))


def _slice_of(name: str, place: Place, source: _Source, shape: tuple[int, ...], whole: tuple[int, ...]) -> Slice:
    """The part of a contiguous `whole` that a view of it is."""
    strides = _contiguous_strides(whole)
    same_strides = all(
        size == 1 or own == stride for size, own, stride in zip(source.shape, source.stride, strides, strict=True)
    )
    if source.shape != shape or not same_strides:
        raise TrainingError(
            f"{name} of {shape} on {place} is filled from a part of {source.shape}, with strides {source.stride}, of "
            f"the whole {whole}: that is not a slice of it"
        )
    start = tuple(source.offset // stride % size for stride, size in zip(strides, whole, strict=True))
    return Slice(name, place, start, tuple(first + size for first, size in zip(start, shape, strict=True)))


def _contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _check_table_rows(chunk: nn.Module, slices: list[Slice]) -> None:
    """The rows of the token table that the forward pass takes for this rank's are those it holds."""
    embedding = getattr(chunk, "embedding", None)
    if embedding is None:
        return
    rows = (embedding.tokens.vocab_start_index, embedding.tokens.vocab_end_index)
    held = next(part for part in slices if part.name == TOKEN_EMBEDDING)
    if rows != (held.start[0], held.stop[0]):
        raise TrainingError(
            f"{TOKEN_EMBEDDING} on {held.place} holds rows {held.start[0]} to {held.stop[0] - 1}, but the forward pass "
            f"looks up rows {rows[0]} to {rows[1] - 1} there"
        )
