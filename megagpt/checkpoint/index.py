"""index.json of a checkpoint: which rank's files hold which elements of every parameter.

    {"tensor_ranks": 2, "pieces": {"layers.0.mlp.up.weight": [[rank, tensor slice, start, stop], ...], ...}}

Masters and moments of a piece lie in the same rank's `weights-` and `moments-` file. Knows nothing of
torch.distributed.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from megagpt.checkpoint.pieces import MASTER, Cut, num_slices, slice_size
from megagpt.errors import CheckpointError, DamagedCheckpointError
from megagpt.model.names import ParameterInfo

INDEX_NAME = "index.json"


class Place(NamedTuple):
    """Where a piece is saved and which elements of its slice it is."""

    rank: int
    tensor_slice: int
    start: int
    stop: int


class Index(NamedTuple):
    """All pieces by global parameter name."""

    tensor_ranks: int
    pieces: dict[str, list[Place]]

    def to_json(self) -> str:
        """The text of index.json, a line a parameter."""
        lines = (f"{json.dumps(name)}: {json.dumps(places)}" for name, places in sorted(self.pieces.items()))
        return f'{{"tensor_ranks": {self.tensor_ranks}, "pieces": {{\n' + ",\n".join(lines) + "\n}}\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> "Index":
        """What `to_json` wrote. Raises CheckpointError naming the file."""
        try:
            values = json.loads(text)
            pieces = {name: [Place(*map(int, place)) for place in places] for name, places in values["pieces"].items()}
            return cls(int(values["tensor_ranks"]), pieces)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCheckpointError(f"{where} is damaged: {error}; use another checkpoint") from None

    def cut(self, place: Place, info: ParameterInfo) -> Cut:
        """Where a piece lies in its parameter."""
        return Cut(place.tensor_slice, num_slices(info, self.tensor_ranks), place.start, place.stop)


def weights_file(rank: int) -> str:
    """Name of the float32 weights that one rank saved."""
    return f"weights-rank{rank:05d}.safetensors"


def moments_file(rank: int) -> str:
    """Name of the optimizer moments that one rank saved."""
    return f"moments-rank{rank:05d}.safetensors"


def file_of(rank: int, kind: str) -> str:
    """The file that holds a kind of tensor of one rank."""
    return weights_file(rank) if kind == MASTER else moments_file(rank)


def tensor_key(name: str, kind: str) -> str:
    """Key of a piece in its file."""
    return f"{name}/{kind}"


def check_index(index: Index, infos: dict[str, ParameterInfo], where: Path) -> None:
    """Raise CheckpointError unless the pieces hold every element of every parameter once."""
    for name in index.pieces:
        if name not in infos:
            raise CheckpointError(f"{where} holds an unknown parameter {name}; was it written by a newer megagpt?")
    for name, info in infos.items():
        slices = num_slices(info, index.tensor_ranks)
        cut = 0 if info.split_dim is None else info.shape[info.split_dim]
        if index.tensor_ranks < 1 or cut % slices:
            raise DamagedCheckpointError(
                f"{where} divides {name} of shape {info.shape} over {slices} tensor ranks; use another checkpoint"
            )
        size = slice_size(info, slices)
        held: list[list[Place]] = [[] for _ in range(slices)]
        for place in index.pieces.get(name, []):
            if not (0 <= place.tensor_slice < slices and 0 <= place.start < place.stop <= size):
                raise DamagedCheckpointError(
                    f"{where}: {name} has no elements {place.start} to {place.stop - 1} in slice {place.tensor_slice}: "
                    f"there are {slices} slices of {size} elements; use another checkpoint"
                )
            held[place.tensor_slice].append(place)
        for number, places in enumerate(held):
            _check_slice(f"{name}, slice {number}" if slices > 1 else name, places, size, number, where)


def _check_slice(what: str, places: list[Place], size: int, number: int, where: Path) -> None:
    ends = [Place(-1, number, 0, 0), *sorted(places, key=lambda place: place.start), Place(-1, number, size, size)]
    for before, after in pairwise(ends):
        if before.stop < after.start:
            raise DamagedCheckpointError(
                f"{where} holds no elements {before.stop} to {after.start - 1} of {what}; it is not whole"
            )
        if before.stop > after.start:
            raise DamagedCheckpointError(
                f"{where}: ranks {before.rank} and {after.rank} both hold elements {after.start} to "
                f"{min(before.stop, after.stop) - 1} of {what}; use another checkpoint"
            )
