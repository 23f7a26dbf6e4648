"""Whether the slices on all tensor and pipeline ranks make up the whole model: every element once, copies as designed.

In: the parameters of the whole model and the Slices on each rank. Out: Coverage, or a TrainingError that names
parameter, slice and ranks. Pure: knows nothing of torch.

Copies that the design wants: parameters that tensor parallelism does not split (norms, biases of row linears, the
position table) on every tensor rank, and the token table, tied to the output head, at both ends of a pipeline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from megagpt.errors import TrainingError
from megagpt.model.names import TOKEN_EMBEDDING, ParameterInfo
from megagpt.rehearse.slices import Slice

_SHOWN = 8  # problems named in one error


@dataclass(frozen=True)
class Coverage:
    """What all tensor and pipeline positions hold together, in parameter values.

    held = model + tensor_copies + tied_copies. `by_position[p][t]` is what tensor rank t of pipeline rank p holds.
    """

    model: int
    held: int
    tensor_copies: int
    tied_copies: int
    by_position: tuple[tuple[int, ...], ...]


def check_coverage(
    infos: dict[str, ParameterInfo], slices: Sequence[Slice], tensor_ranks: int, pipeline_ranks: int
) -> Coverage:
    """The coverage of a model by slices. Raises TrainingError for what is missing, overlaps, or is not the model's."""
    by_name: dict[str, list[Slice]] = {name: [] for name in infos}
    problems = []
    for part in slices:
        if part.name in by_name:
            by_name[part.name].append(part)
        else:
            problems.append(f"{part.name} on {part.place} is no parameter of the model")
    tied_ends = {0, pipeline_ranks - 1}
    for name, info in infos.items():
        wanted_ends = tied_ends if name == TOKEN_EMBEDDING else None
        problems += _problems(name, info, by_name[name], tensor_ranks, wanted_ends)
    if problems:
        more = [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise TrainingError("the ranks' shards are not the whole model:\n  " + "\n  ".join([*problems[:_SHOWN], *more]))
    sizes = {name: prod(info.shape) for name, info in infos.items()}
    by_position = [[0] * tensor_ranks for _ in range(pipeline_ranks)]
    for part in slices:
        by_position[part.place.pipeline_rank][part.place.tensor_rank] += part.num_values
    whole_on_each = sum(size for name, size in sizes.items() if infos[name].split_dim is None)
    return Coverage(
        model=sum(sizes.values()),
        held=sum(part.num_values for part in slices),
        tensor_copies=whole_on_each * (tensor_ranks - 1),
        tied_copies=sizes[TOKEN_EMBEDDING] * (len(tied_ends) - 1),
        by_position=tuple(map(tuple, by_position)),
    )


def _problems(
    name: str, info: ParameterInfo, parts: list[Slice], tensor_ranks: int, wanted_ends: set[int] | None
) -> Iterator[str]:
    """What is wrong with one parameter. `wanted_ends`: the pipeline ranks that hold it; None: any one."""
    if not parts:
        yield f"{name} of {info.shape} is on no rank"
        return
    ends = {part.place.pipeline_rank for part in parts}
    if wanted_ends is not None and ends != wanted_ends:
        yield f"{name} is on pipeline ranks {sorted(ends)}, but should be on {sorted(wanted_ends)}"
        return
    if wanted_ends is None and len(ends) > 1:
        first, second = (next(part for part in parts if part.place.pipeline_rank == end) for end in sorted(ends)[:2])
        yield f"{_describe(second, info)} is on {second.place} and on {first.place}"
        return
    for end in sorted(ends):
        of_end = sorted(
            (part for part in parts if part.place.pipeline_rank == end), key=lambda part: part.place.tensor_rank
        )
        holders = [part.place.tensor_rank for part in of_end]
        if holders != list(range(tensor_ranks)):
            missing = sorted(set(range(tensor_ranks)) - set(holders))
            yield f"{name} is on tensor ranks {holders} of pipeline rank {end}" + (
                f", but not on tensor ranks {missing}" if missing else ", more than once"
            )
        yield from _problems_of_split(name, info, of_end)


def _problems_of_split(name: str, info: ParameterInfo, parts: list[Slice]) -> Iterator[str]:
    """Gaps and overlaps along the split dim, and other dims or copies that are not whole."""
    for part in parts:
        for dim, size in enumerate(info.shape):
            if dim != info.split_dim and (part.start[dim], part.stop[dim]) != (0, size):
                yield (
                    f"{_describe(part, info)} on {part.place} is not whole along dim {dim}: {part.start[dim]} to "
                    f"{part.stop[dim] - 1} of {size}"
                )
                return
    if info.split_dim is None:
        return
    dim = info.split_dim
    ordered = sorted(parts, key=lambda part: (part.start[dim], part.stop[dim]))
    reached, last = 0, None
    for part in ordered:
        if part.start[dim] > reached:
            yield f"{name}: {_range(dim, reached, part.start[dim])} of {info.shape} are on no rank"
        if part.start[dim] < reached and last is not None:
            overlap = _range(dim, part.start[dim], min(reached, part.stop[dim]))
            yield f"{name}: {overlap} of {info.shape} are on {last.place} and on {part.place}"
        if part.stop[dim] > reached:
            reached, last = part.stop[dim], part
    if reached < info.shape[dim]:
        yield f"{name}: {_range(dim, reached, info.shape[dim])} of {info.shape} are on no rank"


def _describe(part: Slice, info: ParameterInfo) -> str:
    if info.split_dim is None:
        return f"{part.name} of {info.shape}"
    return f"{part.name}, {_range(info.split_dim, part.start[info.split_dim], part.stop[info.split_dim])}"


def _range(dim: int, start: int, stop: int) -> str:
    return f"{('rows', 'columns')[dim]} {start} to {stop - 1}"
