"""Pieces of any cut overlay any other: every element is copied once, to its own place."""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from megagpt.checkpoint.pieces import Cut, Piece, num_slices, overlay, slice_size
from megagpt.model.init import local_slice
from megagpt.model.names import ParameterInfo

SHAPES = [
    ParameterInfo((24, 10), 0, True, False),
    ParameterInfo((7, 24), 1, True, False),
    ParameterInfo((24,), 0, False, False),
    ParameterInfo((31,), None, False, False),
    ParameterInfo((5, 7), None, False, False),
    ParameterInfo((1, 24), 1, True, False),
]


def random_cuts(info: ParameterInfo, tensor_ranks: int, draw: random.Random) -> list[Cut]:
    """Every slice cut at random places."""
    slices = num_slices(info, tensor_ranks)
    size = slice_size(info, slices)
    cuts = []
    for number in range(slices):
        ends = sorted({0, size, *(draw.randrange(size + 1) for _ in range(draw.randrange(5)))})
        cuts += [Cut(number, slices, start, stop) for start, stop in pairwise(ends)]
    return cuts


def values_of(whole: Tensor, info: ParameterInfo, cut: Cut) -> Tensor:
    """What a piece holds, by way of the slices that the model is made of."""
    return local_slice(whole, info, cut.tensor_slice, cut.num_slices).reshape(-1)[cut.start : cut.stop].clone()


@pytest.mark.parametrize("info", SHAPES)
def test_random_cuts(info: ParameterInfo) -> None:
    draw = random.Random(5)
    whole = torch.arange(torch.Size(info.shape).numel(), dtype=torch.float32).reshape(info.shape)
    for _ in range(60):
        there, here = (random_cuts(info, draw.choice([1, 2, 3, 4, 6, 8]), draw) for _ in range(2))
        for wanted in here:
            found = torch.full((wanted.stop - wanted.start,), -1.0)
            num_copied = 0
            for cut in there:
                for copy in overlay(info, cut, wanted):
                    copy.run(values_of(whole, info, cut), found)
                    num_copied += copy.num_rows * copy.num_columns
            assert torch.equal(found, values_of(whole, info, wanted)), (there, wanted)
            assert num_copied == len(found), "nothing is copied twice"


def test_equal_cuts_are_few_copies() -> None:
    """Rows are not copied one by one: at most the end of one, whole rows, and the start of another."""
    info = ParameterInfo((1000, 64), 1, True, False)
    cut = Cut(1, 2, 5, 31_000)
    assert len(overlay(info, cut, cut)) == 3
    assert len(overlay(info, Cut(0, 1, 0, 64_000), Cut(3, 4, 0, 16_000))) == 1
    assert overlay(info, Cut(0, 2, 0, 32_000), Cut(1, 2, 0, 32_000)) == []


def test_narrow() -> None:
    values = torch.arange(10.0)
    piece = Piece("a", 0, 100, 110, values, values + 1, values + 2).narrow(104, 107)
    assert (piece.start, piece.stop) == (104, 107)
    assert piece.tensor("master").tolist() == [4, 5, 6]
    assert piece.tensor("exp_avg_sq").tolist() == [6, 7, 8]
    piece.tensor("master").zero_()
    assert values.tolist() == [0, 1, 2, 3, 0, 0, 0, 7, 8, 9], "a view"
