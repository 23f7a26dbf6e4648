"""The matrix of layouts: tensor × sequence parallel × pipeline × ZeRO × context, each cell asked of the plan.

Out: the cells that fit in eight ranks and compose, and those that the plan refuses, with its reasons. Two data ranks
wherever they still fit, so that ZeRO has something to shard.
"""

from itertools import product
from typing import NamedTuple

from megagpt.errors import ConfigError
from tests.parallel.cases import small_plan
from tests.parity.compare import Case

MAX_RANKS = 8
TENSOR = (1, 2, 4)
PIPELINE = ((1, 1), (2, 1), (4, 1), (2, 2))  # stages, and chunks on each
ZERO = (0, 1, 2, 3)
CONTEXT = (1, 2)
HEADS = ("--model.num_heads=8",)  # 4 tensor ranks times 2 context ranks want a head each


class Cell(NamedTuple):
    """One layout of the matrix."""

    tensor: int
    sequence_parallel: bool
    pipeline: int
    virtual_stages: int
    zero_stage: int
    context: int
    data: int

    @property
    def num_ranks(self) -> int:
        """All ranks of the layout."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def case(self) -> Case:
        """The run of this layout."""
        layout = [
            f"--parallel.tensor={self.tensor}",
            f"--parallel.sequence_parallel={str(self.sequence_parallel).lower()}",
            f"--parallel.pipeline={self.pipeline}",
            f"--parallel.virtual_stages={self.virtual_stages}",
            f"--parallel.zero_stage={self.zero_stage}",
            f"--parallel.context={self.context}",
        ]
        if self.pipeline > 1:  # 4 micro-batches: as many as stages or more, so that 1F1B has its steady part
            layout.append(f"--train.micro_batch_size={2 // self.data}")
        return Case(self.num_ranks, tuple(layout), HEADS)

    def __str__(self) -> str:
        parts = [f"tp{self.tensor}" + ("sp" if self.sequence_parallel else "")]
        parts.append(f"pp{self.pipeline}" + (f"x{self.virtual_stages}" if self.virtual_stages > 1 else ""))
        return "-".join([*parts, f"zero{self.zero_stage}", f"cp{self.context}", f"dp{self.data}"])


class Matrix(NamedTuple):
    """All combinations that fit in eight ranks."""

    composable: tuple[Cell, ...]
    refused: dict[Cell, list[str]]  # with the plan's reasons


def make_matrix() -> Matrix:
    """Ask the plan about every combination."""
    composable, refused = [], {}
    for tensor, sequence_parallel, (pipeline, virtual), zero, context in product(
        TENSOR, (False, True), PIPELINE, ZERO, CONTEXT
    ):
        replica = tensor * pipeline * context
        if replica > MAX_RANKS:
            continue
        data = 2 if 2 * replica <= MAX_RANKS else 1
        cell = Cell(tensor, sequence_parallel, pipeline, virtual, zero, context, data)
        try:
            small_plan(cell.num_ranks, cell.case.arguments("fp32"))
        except ConfigError as error:
            refused[cell] = error.problems
        else:
            composable.append(cell)
    return Matrix(tuple(composable), refused)
