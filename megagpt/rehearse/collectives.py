"""Every collective operation of a run: kind, group, dtype and bytes, counted; and counts of longer steps from those.

In: calls of torch.ops.c10d as a dispatch mode sees them. Out: counts by Collective. A message's size is that of the
call's largest buffer on this rank: an all-gather's output, a reduce-scatter's input.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megagpt.errors import TrainingError
from megagpt.parallel.mesh import DeepSpeedMesh, Mesh

# torch.ops.c10d's names without "_" and "base", coalesced forms alike
_KINDS = {
    "allreduce": "all-reduce",
    "allgather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "alltoall": "all-to-all",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "gather": "gather",
    "scatter": "scatter",
    "send": "send",
    "recv": "receive",
    "barrier": "barrier",
}


class Collective(NamedTuple):
    """One kind of call on this rank."""

    kind: str
    group: str  # tensor, context, pipeline, gradient, embedding, model (tensor × pipeline) or world
    group_size: int
    dtype: str
    num_bytes: int  # largest buffer of the call on this rank
    during: str  # forward, backward, between (passes), step (before and after the schedule)


def name_groups(mesh: Mesh) -> dict[str, str]:
    """The mesh's groups by torch's name of each."""
    groups = {
        "world": dist.group.WORLD,
        "model": DeepSpeedMesh(mesh).get_model_parallel_group(),
        "gradient": mesh.gradient_group,
        "context": mesh.context_group,
        "pipeline": mesh.pipeline_group,
        "tensor": mesh.tensor_group,
        "embedding": mesh.embedding_group,
    }
    return {group.group_name: name for name, group in groups.items() if group is not None}


def read_call(func: Any, args: Sequence[Any], group_names: dict[str, str], during: str) -> Collective:
    """The collective that a call of a torch.ops.c10d operator is."""
    buffers = [part for part in (tensors_of(argument) for argument in args) if part]
    group = next(ProcessGroup.unbox(argument) for argument in args if isinstance(argument, torch.ScriptObject))
    largest = max((sum(t.numel() * t.element_size() for t in part) for part in buffers), default=0)
    dtype = str(buffers[0][0].dtype).removeprefix("torch.") if buffers else ""
    name = group_names.get(group.group_name)
    if name is None:
        name = f"ranks {', '.join(map(str, dist.get_process_group_ranks(group)))}"
    return Collective(_kind(func), name, group.size(), dtype, largest, during)


def _kind(func: Any) -> str:
    name = func._schema.name.removeprefix("c10d::").strip("_")
    for part in ("_base", "_into_tensor", "_tensor", "_coalesced"):
        name = name.removesuffix(part)
    name = {"allgather_into_tensor": "allgather"}.get(name, name)
    return _KINDS.get(name, name)


def tensors_of(argument: Any) -> list[Tensor]:
    """Tensors of an argument: one, a list, or a list of lists."""
    if isinstance(argument, Tensor):
        return [argument]
    if isinstance(argument, (list, tuple)):
        return [tensor for part in argument for tensor in tensors_of(part)]
    return []


def scale_counts(counts: dict[int, Counter[Collective]], num_micro_batches: int) -> Counter[Collective]:
    """Counts of a step of `num_micro_batches` from three steps of other lengths, the same number apart.

    Raises TrainingError where they do not grow by the same from step to step: then only the whole step tells.
    """
    short, middle, long = sorted(counts)
    assert middle - short == long - middle > 0, (short, middle, long)
    assert (num_micro_batches - short) % (middle - short) == 0, (num_micro_batches, short, middle)
    more = (num_micro_batches - short) // (middle - short)
    scaled: Counter[Collective] = Counter()
    for collective in counts[short] | counts[middle] | counts[long]:
        first, second, third = (counts[length][collective] for length in (short, middle, long))
        if second - first != third - second:
            raise TrainingError(
                f"steps of {short}, {middle} and {long} micro-batches have {first}, {second} and {third} times "
                f"{collective.kind} over the {collective.group} group, which does not grow evenly: counts of "
                f"{num_micro_batches} micro-batches cannot follow from them; use --micro-batches {num_micro_batches}"
            )
        scaled[collective] = first + more * (second - first)
    return scaled
