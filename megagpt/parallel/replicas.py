"""Weights that must be copies of one another are: compared bit for bit over ranks, by a checksum of each parameter.

    copies over       which parameters
    tensor group      those that tensor parallelism does not split: norms, biases added after a sum, positions
    embedding group   the token table, at the two ends of a pipeline
    gradient group    all, unless ZeRO 3 partitions them; then each rank's part is compared over the tensor group alone

In: this rank's parameters and the mesh. Out: nothing, or a TrainingError on every rank. Knows no optimizer: the fp32
master weights of ZeRO are partitioned, and bf16 or fp16 weights are made from them.
"""

from collections import Counter
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megagpt.errors import TrainingError
from megagpt.model.names import TOKEN_EMBEDDING
from megagpt.parallel.mesh import Mesh

# elements summed at a time: 32 MiB of int64 products and weights, however large a table is
_CHUNK_ELEMENTS = 2**21
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio, odd, as a signed number (Knuth, TAOCP 3, §6.4)
_BITS = {4: torch.int32, 2: torch.int16}
_SHOWN = 8


class RankWeights(NamedTuple):
    """What one rank says of its weights once some copy differs somewhere."""

    rank: int
    tensor_rank: int
    part: int  # rank in the gradient group under ZeRO 3, where each holds another part; else 0
    checksums: dict[str, int]
    split: frozenset[str]  # names that tensor parallelism splits: other tensor ranks hold other slices


class Difference(NamedTuple):
    """Copies of one parameter that are not equal."""

    name: str
    odd: list[int]  # ranks that differ from the majority; all that hold it where there is no majority
    holders: list[int]


class ReplicaCheck:
    """Compares copies when training starts and after every `interval_steps` steps (0: never)."""

    def __init__(self, parameters: dict[str, nn.Parameter], mesh: Mesh, zero_stage: int, interval_steps: int) -> None:
        self._mesh, self._interval_steps = mesh, interval_steps
        self._partitioned = zero_stage == 3
        # what ZeRO 3 partitions has copies on the other tensor ranks alone, and there only what they do not split
        whole = {name: parameter for name, parameter in parameters.items() if not _is_split(parameter)}
        self._parameters = whole if self._partitioned else parameters
        self._last_equal: int | None = None  # steps done at the last check

    def check_when_due(self, done: int) -> None:
        """After `done` updates. Every rank calls it; reduces over tensor, embedding and gradient group and all ranks.

        Raises TrainingError on every rank, naming the first parameters in model order and the ranks that differ.
        """
        due = self._last_equal is None or done % max(self._interval_steps, 1) == 0
        num_copies = self._mesh.tensor_size if self._partitioned else self._mesh.world_size
        if self._interval_steps == 0 or not due or num_copies == 1:
            return
        checksums = self._checksums()
        differs = torch.stack([reduce_differs(part, group) for part, group in self._compared(checksums)]).any()
        somewhere = differs.to(torch.int32)
        dist.all_reduce(somewhere, op=dist.ReduceOp.MAX)
        if bool(somewhere):
            differences = find_differences(self._gather_weights(checksums))
            raise TrainingError(describe_differences(differences, done, self._last_equal))
        self._last_equal = done

    def _checksums(self) -> Tensor:
        """[number of parameters] int64 on this rank's device."""
        largest = max(getattr(parameter, "ds_numel", parameter.numel()) for parameter in self._parameters.values())
        weights: dict[torch.device, Tensor] = {}  # a shard that is offloaded is summed on the CPU
        sums = []
        for parameter in self._parameters.values():
            values = self._held(parameter)
            if values.device not in weights:
                weights[values.device] = position_weights(min(largest, _CHUNK_ELEMENTS), values.device)
            sums.append(checksum(values, weights[values.device]).to(self._mesh.device))
        return torch.stack(sums)

    def _held(self, parameter: nn.Parameter) -> Tensor:
        """What this rank keeps of a parameter: all of it, or under ZeRO 3 its part without the padding at the end."""
        if not self._partitioned:
            return parameter.detach()
        import deepspeed
        from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus

        shard: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        if shard.status != PartitionedParamStatus.AVAILABLE:  # type: ignore[attr-defined]
            # in a file: read over the gradient group, which each of its ranks does alike
            with deepspeed.zero.GatheredParameters([parameter]):
                return parameter.detach().clone()
        total, size = parameter.ds_numel, shard.ds_numel  # type: ignore[attr-defined]
        filled = min(max(total - size * self._mesh.gradient_rank, 0), size)
        return shard.detach().reshape(-1)[:filled]

    def _compared(self, checksums: Tensor) -> list[tuple[Tensor, ProcessGroup]]:
        """The checksums that each group must agree on. Ranks of one group hold the same names in the same order."""
        mesh = self._mesh
        names = list(self._parameters)
        copies = [place for place, name in enumerate(names) if not _is_split(self._parameters[name])]
        found = [(checksums[copies], mesh.tensor_group)]
        if mesh.embedding_group is not None:
            found.append((checksums[[names.index(TOKEN_EMBEDDING)]], mesh.embedding_group))
        if not self._partitioned:
            found.append((checksums, mesh.gradient_group))
        return found

    def _gather_weights(self, checksums: Tensor) -> list[RankWeights]:
        """What every rank holds. Gathers objects over all ranks."""
        mesh = self._mesh
        own = RankWeights(
            mesh.rank,
            mesh.tensor_rank,
            mesh.gradient_rank if self._partitioned else 0,
            dict(zip(self._parameters, checksums.tolist(), strict=True)),
            frozenset(name for name, parameter in self._parameters.items() if _is_split(parameter)),
        )
        gathered: list[RankWeights] = [own] * mesh.world_size
        dist.all_gather_object(gathered, own)
        return gathered


def position_weights(count: int, device: torch.device) -> Tensor:
    """[count] odd int64, another for each position: equal values at other places give another checksum."""
    weights = torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(_GOLDEN)
    return weights.bitwise_xor_(weights >> 29).bitwise_or_(1)


def checksum(values: Tensor, weights: Tensor) -> Tensor:
    """[] int64 on the device of `values`, of any shape, in 16 or 32 bits: Σ bits · weight modulo 2^64.

    One pass over the values, `len(weights)` at a time. A weight is odd, so that one changed bit changes the sum.
    """
    bits = values.reshape(-1).view(_BITS[values.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for part in bits.split(len(weights)):
        total = total * _GOLDEN + part.to(torch.int64).mul_(weights[: len(part)]).sum()
    return total


def reduce_differs(checksums: Tensor, group: ProcessGroup) -> Tensor:
    """[] bool, equal on the group's ranks: whether any of these int64 differs between them. Reduces over the group."""
    bounds = torch.stack([checksums, ~checksums])  # the largest, and the complement of the smallest
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=group)
    return (bounds[0] != ~bounds[1]).any()


def find_differences(ranks: list[RankWeights]) -> list[Difference]:
    """Every parameter whose copies are not all equal, in model order. Pure."""
    copies: dict[tuple[str, int, int], dict[int, int]] = {}  # (name, slice, part) to rank to checksum
    for weights in ranks:
        for name, value in weights.checksums.items():
            piece = weights.tensor_rank if name in weights.split else 0
            copies.setdefault((name, piece, weights.part), {})[weights.rank] = value
    differences = []
    for (name, _, _), held in copies.items():
        (value, most), *others = Counter(held.values()).most_common()
        if others:
            has_majority = 2 * most > len(held)
            odd = [rank for rank, found in held.items() if not has_majority or found != value]
            differences.append(Difference(name, odd, list(held)))
    return differences


def describe_differences(differences: list[Difference], done: int, last_equal: int | None) -> str:
    """What the user reads: which parameters, which ranks, since when, and what to do."""
    assert differences, "the checksums differed in a group, and are equal in the same group"
    shown = "; ".join(f"{difference.name}: {_describe_ranks(difference)}" for difference in differences[:_SHOWN])
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    if last_equal is None:
        when = f"after step {done}, where this run starts," if done else "before the first step"
        fix = "continue from an older checkpoint: write its name into checkpoints/latest" if done else "start again"
    else:
        when = f"after step {done}"
        fix = (
            f"they were equal after step {last_equal}: write the name of a checkpoint of that step or an earlier one "
            "into checkpoints/latest and start again"
        )
    return (
        f"{when} weights that must be copies of one another differ ({shown}{more}). {fix[0].upper()}{fix[1:]}. If the "
        "same rank differs again, its GPU or memory computes wrongly: leave that machine out"
    )


def _describe_ranks(difference: Difference) -> str:
    odd, holders = difference.odd, difference.holders
    listed = ", ".join(map(str, odd[:_SHOWN])) + (f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else "")
    if len(odd) == len(holders):
        return f"ranks {listed} hold different values"
    others = len(holders) - len(odd)
    plural = "s" if len(odd) > 1 else ""
    return f"rank{plural} {listed} differ{'' if plural else 's'} from the {others} other ranks that hold it"


def _is_split(parameter: nn.Parameter) -> bool:
    return bool(parameter.tensor_model_parallel)  # type: ignore[attr-defined]
