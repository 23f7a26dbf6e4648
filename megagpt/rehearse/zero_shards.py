"""Whether ZeRO's shards over the gradient group cover this rank's parameters exactly once.

In: an Engine. Out: ZeroShards, or a TrainingError that names parameter, elements and ranks. Reads where DeepSpeed has
put things: offsets of its flat buffers' views with ZeRO 1 and 2, sizes of the parameters' own shards with ZeRO 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from megagpt.errors import TrainingError
from megagpt.parallel.engine import Engine


class Span(NamedTuple):
    """Consecutive elements of a flat buffer and who they belong to: a parameter's name, or a gradient rank."""

    start: int
    stop: int
    owner: str


@dataclass(frozen=True)
class ZeroShards:
    """Values of the sharded state. shard * ranks = parameters + padding."""

    ranks: int
    parameters: int
    shard: int  # values on each gradient rank
    padding: int  # values that belong to no parameter, so that all shards are of one size


def check_zero_shards(engine: Engine) -> ZeroShards | None:
    """The shards of an engine's parameters; None without ZeRO. Raises TrainingError for a gap or an overlap."""
    if engine.zero_stage == 0:
        return None
    names = {parameter: name for name, parameter in engine.named_parameters.items()}
    ranks = engine.mesh.gradient_size
    if engine.zero_stage == 3:
        return _own_shards(engine.named_parameters, ranks)
    optimizer: Any = engine.optimizer
    if hasattr(optimizer, "bf16_groups_flat"):  # bf16 with ZeRO 1
        groups = (optimizer.bf16_groups, optimizer.bf16_groups_flat, optimizer.bf16_partitioned_groups)
    else:
        flat = optimizer.bit16_groups_flat
        groups = (optimizer.bit16_groups, flat, optimizer.parallel_partitioned_bit16_groups)
    held = [name for parameters in groups[0] for name in (names[parameter] for parameter in parameters)]
    _check_names(held, list(engine.named_parameters))
    shard = padding = 0
    for parameters, flat, partitions in zip(*groups, strict=True):
        padding += check_flat_group(
            [_span(parameter.data, flat, names[parameter]) for parameter in parameters],
            [_span(part, flat, f"gradient rank {rank}") for rank, part in enumerate(partitions)],
            flat.numel(),
            ranks,
        )
        shard += flat.numel() // ranks
    return ZeroShards(ranks, sum(parameter.numel() for parameter in names), shard, padding)


def check_flat_group(parameters: Sequence[Span], shards: Sequence[Span], size: int, ranks: int) -> int:
    """Elements of padding in one flat buffer of `size` elements, cut over `ranks`.

    Raises TrainingError where the shards leave out or repeat an element, or where parameters overlap.
    """
    problems = []
    if len(shards) != ranks:
        problems.append(f"there are {len(shards)} shards for {ranks} gradient ranks")
    ordered = sorted(shards)
    for before, after in zip([Span(0, 0, ""), *ordered], [*ordered, Span(size, size, "")], strict=True):
        if before.stop < after.start:
            problems.append(f"{_named(before.stop, after.start, parameters)} is in no shard")
        if before.stop > after.start:
            if after.owner:
                where = _named(after.start, min(before.stop, after.stop), parameters)
                problems.append(f"{where} is in the shards of {before.owner} and {after.owner}")
            else:
                problems.append(f"the shard of {before.owner} ends at {before.stop}, after the end {size}")
    spans = sorted(parameters)
    for before, after in pairwise(spans):
        if before.stop > after.start:
            problems.append(f"{before.owner} and {after.owner} share {before.stop - after.start} elements")
    if spans and (spans[0].start < 0 or spans[-1].stop > size):
        problems.append(f"{spans[-1].owner} ends at {spans[-1].stop}, after the end {size} of what is sharded")
    if problems:
        raise TrainingError("ZeRO's shards do not cover the parameters:\n  " + "\n  ".join(problems))
    return size - sum(span.stop - span.start for span in parameters)


def check_own_shard(name: str, size: int, shard: int, ranks: int) -> int:
    """Elements of padding of one parameter of `size` elements, cut into `ranks` shards: rank r's is the r-th."""
    if shard * ranks < size:
        raise TrainingError(
            f"ZeRO's shards do not cover the parameters:\n  {name}: elements {shard * ranks} to {size - 1} are on none "
            f"of the {ranks} gradient ranks, whose shards have {shard} elements"
        )
    return shard * ranks - size


def _own_shards(named: dict[str, nn.Parameter], ranks: int) -> ZeroShards:
    """ZeRO 3: every parameter has shards of its own (deepspeed/runtime/zero/partition_parameters.py)."""
    unsharded = [name for name, parameter in named.items() if not hasattr(parameter, "ds_tensor")]
    _check_names([name for name in named if name not in unsharded], list(named))
    sizes = {name: (parameter.ds_numel, parameter.ds_tensor.ds_numel) for name, parameter in named.items()}  # type: ignore[attr-defined]
    padding = sum(check_own_shard(name, size, shard, ranks) for name, (size, shard) in sizes.items())
    return ZeroShards(
        ranks, sum(size for size, _ in sizes.values()), sum(shard for _, shard in sizes.values()), padding
    )


def _check_names(held: list[str], wanted: list[str]) -> None:
    missing = sorted(set(wanted) - set(held))
    twice = sorted({name for name in held if held.count(name) > 1}) if len(held) != len(set(held)) else []
    if missing or twice:
        what = [*(f"{name} is in no shard" for name in missing), *(f"{name} is sharded twice" for name in twice)]
        raise TrainingError("ZeRO's shards do not cover the parameters:\n  " + "\n  ".join(what))


def _span(view: Tensor, flat: Tensor, owner: str) -> Span:
    if view.untyped_storage()._cdata != flat.untyped_storage()._cdata:
        raise TrainingError(f"ZeRO's shards do not cover the parameters:\n  {owner} is outside of what is sharded")
    start = int(view.storage_offset()) - int(flat.storage_offset())
    return Span(start, start + view.numel(), owner)


def _named(start: int, stop: int, parameters: Sequence[Span]) -> str:
    """Which elements of which parameters lie in a stretch of the buffer."""
    parts = []
    for span in parameters:
        first, last = max(start, span.start), min(stop, span.stop)
        if first < last:
            parts.append(f"{span.owner}: elements {first - span.start} to {last - span.start - 1}")
    return ", ".join(parts) or f"padding: elements {start} to {stop - 1}"
