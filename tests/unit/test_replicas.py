"""Checksums of weights tell bits and places apart, and what a difference is called."""

import pytest
import torch

from megagpt.parallel.replicas import (
    Difference,
    RankWeights,
    checksum,
    describe_differences,
    find_differences,
    position_weights,
)

WEIGHTS = position_weights(64, torch.device("cpu"))  # fewer than the values below: several parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checksum_sees_every_bit_and_every_place(dtype: torch.dtype) -> None:
    values = torch.randn(5, 40, generator=torch.Generator().manual_seed(3)).to(dtype)
    bits = values.view(-1).view({4: torch.int32, 2: torch.int16}[values.element_size()])
    seen = {int(checksum(values, WEIGHTS))}
    assert int(checksum(values.clone(), WEIGHTS)) in seen
    for place in range(0, 200, 7):
        for bit in range(8 * values.element_size()):
            bits[place] ^= 1 << bit if bit < 8 * values.element_size() - 1 else -(1 << bit)
            seen.add(int(checksum(values, WEIGHTS)))
            bits[place] ^= 1 << bit if bit < 8 * values.element_size() - 1 else -(1 << bit)
    for first, second in ((0, 1), (3, 67), (63, 64), (10, 199)):  # within a part, at its border, across parts
        swapped = values.flatten()
        swapped[[first, second]] = swapped[[second, first]]
        seen.add(int(checksum(swapped, WEIGHTS)))
    assert len(seen) == 1 + 29 * 8 * values.element_size() + 4


def test_zeros_of_both_signs_differ() -> None:
    assert checksum(torch.zeros(3), WEIGHTS) != checksum(-torch.zeros(3), WEIGHTS)


def test_no_values_have_a_checksum() -> None:
    assert int(checksum(torch.zeros(0), WEIGHTS)) == 0


def holding(rank: int, tensor_rank: int, norm: int, matrix: int, part: int = 0) -> RankWeights:
    return RankWeights(rank, tensor_rank, part, {"norm": norm, "matrix": matrix}, frozenset(["matrix"]))


def test_the_majority_is_over_all_copies() -> None:
    """Two tensor ranks times two data ranks: each group alone could not say which of its two is odd."""
    ranks = [holding(0, 0, 5, 70), holding(1, 1, 5, 71), holding(2, 0, 5, 70), holding(3, 1, 6, 72)]
    assert find_differences(ranks) == [
        Difference("norm", [3], [0, 1, 2, 3]),
        Difference("matrix", [1, 3], [1, 3]),
    ]


def test_parts_under_zero_3_are_compared_over_tensor_ranks_alone() -> None:
    ranks = [holding(0, 0, 5, 70, 0), holding(1, 1, 5, 71, 0), holding(2, 0, 8, 72, 1), holding(3, 1, 9, 73, 1)]
    assert find_differences(ranks) == [Difference("norm", [2, 3], [2, 3])]


def test_the_message_names_parameters_ranks_and_what_to_do() -> None:
    found = [Difference("norm", [3], [0, 1, 2, 3]), Difference("bias", list(range(10)), list(range(30)))]
    message = describe_differences(found, 300, 200)
    assert message.startswith("after step 300 weights that must be copies of one another differ (norm: rank 3 differs")
    assert "; bias: ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more differ from the 20 other ranks that hold it)." in message
    assert ". They were equal after step 200: write the name of a checkpoint of that step or an earlier" in message
    assert message.endswith(
        "If the same rank differs again, its GPU or memory computes wrongly: leave that machine out"
    )


def test_many_differences_are_cut() -> None:
    found = [Difference(f"layers.{layer}.norm", [1], [0, 1, 2]) for layer in range(11)]
    message = describe_differences(found, 2, 1)
    assert "layers.7.norm" in message
    assert "layers.8.norm" not in message
    assert "; and 3 more)" in message


def test_what_a_run_starts_from() -> None:
    found = [Difference("norm", [1], [0, 1, 2])]
    assert describe_differences(found, 0, None).startswith("before the first step weights that must be copies")
    resumed = describe_differences(found, 40, None)
    assert resumed.startswith("after step 40, where this run starts, weights that must be copies")
    assert "Continue from an older checkpoint: write its name into checkpoints/latest." in resumed
