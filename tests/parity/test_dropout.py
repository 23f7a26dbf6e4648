"""Dropout on every layout: the same masks as one rank where ranks hold copies, else masks as random as one rank's."""

import math
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from megagpt.data.batch import context_part
from megagpt.kernels import residual_norm
from megagpt.model import attention, embedding
from megagpt.training.build import build_engine
from megagpt.training.totals import dropout_seed
from tests.parallel.cases import micro_batches, plan_mesh, run_all_data_ranks, run_layout, small_plan
from tests.parallel.harness import run_ranks
from tests.parity.compare import Reference, beyond_bounds, differences
from tests.parity.measured import Measured

PROBABILITY = 0.2
FP32 = "--train.precision=fp32"
HIDDEN = [FP32, f"--model.hidden_dropout={PROBABILITY}"]
BOTH = [*HIDDEN, f"--model.attention_dropout={PROBABILITY}"]
PIPELINE = ["--parallel.pipeline=2"]
ON_CPU = ["--parallel.offload_optimizer=cpu", "--parallel.offload_parameters=cpu"]

# layouts whose ranks hold whole sequences and whole heads, or where only copies of hidden states are dropped from
SAME_MASKS: dict[str, tuple[int, int, list[str]]] = {  # ranks, data ranks among them, arguments
    "pipeline 2": (2, 1, [*BOTH, *PIPELINE]),
    "pipeline 2, data 2": (4, 2, [*BOTH, *PIPELINE]),
    "pipeline 2 of 3 and 1 layers": (2, 1, [*BOTH, *PIPELINE, "--parallel.stage_layers=3,1"]),
    "interleaved": (2, 1, [*BOTH, *PIPELINE, "--parallel.virtual_stages=2"]),
    "data 2, ZeRO 1": (2, 2, BOTH),
    "data 2, ZeRO 2": (2, 2, [*BOTH, "--parallel.zero_stage=2"]),
    "data 2, ZeRO 3": (2, 2, [*BOTH, "--parallel.zero_stage=3"]),
    "all offloaded, ZeRO 3": (2, 2, [*BOTH, "--parallel.zero_stage=3", *ON_CPU]),
    "recompute selective": (1, 1, [*BOTH, "--train.recompute=selective"]),
    "recompute full": (1, 1, [*BOTH, "--train.recompute=full"]),
    "recompute full, ZeRO 3": (2, 2, [*BOTH, "--train.recompute=full", "--parallel.zero_stage=3"]),
    "recompute every second, interleaved": (
        2,
        1,
        [*BOTH, *PIPELINE, "--parallel.virtual_stages=2", "--train.recompute=full", "--train.recompute_every=2"],
    ),
    "tensor 2, hidden states only": (2, 1, [*HIDDEN, "--parallel.tensor=2"]),
    "tensor 2, pipeline 2, hidden states only": (4, 1, [*HIDDEN, *PIPELINE, "--parallel.tensor=2"]),
}


@pytest.mark.parametrize("name", SAME_MASKS)
def test_masks_are_those_of_one_rank(name: str, measured: Measured) -> None:
    """Losses, norms, gradients and weights equal those of one rank that does the work of all data ranks."""
    num_ranks, data_ranks, arguments = SAME_MASKS[name]
    computed = [argument for argument in arguments if argument.startswith("--model.")]
    (single,) = run_ranks(1, run_all_data_ranks, data_ranks, [FP32, "--parallel.zero_stage=0", *computed])
    results = run_ranks(num_ranks, run_layout, num_ranks, arguments)
    wanted = Reference(
        single.losses,
        single.grad_norms,
        *({name: value.double() for name, value in values.items()} for values in (single.gradients, single.weights)),
    )
    found = differences(results, wanted, small_plan(num_ranks, arguments))
    assert not beyond_bounds(found, "fp32")


def test_dropout_changes_the_loss_and_each_data_rank_has_masks_of_its_own() -> None:
    """What the test above compares would also be equal without dropout, or with one mask for all."""
    losses = {
        (arguments[-1], data_ranks): run_ranks(1, run_all_data_ranks, data_ranks, list(arguments), 1)[0].losses[0]
        for arguments in ([FP32], HIDDEN, BOTH)
        for data_ranks in (1, 2)
    }
    values = sorted(losses.values())
    assert losses[FP32, 1] == pytest.approx(losses[FP32, 2], rel=1e-6)
    assert sum(larger - smaller > 1e-4 for smaller, larger in pairwise(values)) == 4, losses


def drawn_masks(num_ranks: int, arguments: list[str]) -> dict[str, list[Tensor]]:
    """The masks that one rank draws in one step, in order: of hidden states [S, B, H], of attention [B, N, S, S].

    Asserts that what is kept is scaled by 1 / (1 - probability) and the rest is zero.
    """
    plan = small_plan(num_ranks, arguments)
    mesh = plan_mesh(plan)
    built = build_engine(plan, mesh)
    masks: dict[str, list[Tensor]] = {"hidden": [], "attention": []}
    drop, attend = residual_norm.dropout, attention.attention

    def seen_drop(values: Tensor, probability: float, seed: int | None) -> Tensor:
        dropped = drop(values, probability, seed)
        kept = drop(torch.ones_like(values), probability, seed) != 0  # the mask follows from seed and shape alone
        torch.testing.assert_close(dropped, values * kept / (1 - PROBABILITY))
        masks["hidden"].append(kept)
        return dropped

    def seen_attend(
        query: Tensor, key: Tensor, value: Tensor, mask: Any, probability: float, seed: int, backend: str
    ) -> Tensor:
        # attention over one-hot values gives the probabilities themselves; the mask follows from the seed alone
        one_hot = torch.eye(key.shape[2]).expand(*key.shape[:2], -1, -1)
        whole = attend(query, key, one_hot, mask, 0.0, None).detach()
        dropped = attend(query, key, one_hot, mask, probability, seed).detach()
        mixed = attend(query, key, value, mask, probability, seed, backend)
        torch.testing.assert_close(mixed, dropped @ value)
        kept = dropped != 0
        torch.testing.assert_close(dropped, whole * kept / (1 - PROBABILITY))
        masks["attention"].append(kept[whole != 0])  # the causal half
        return mixed

    residual_norm.dropout = embedding.dropout = seen_drop  # type: ignore[attr-defined]
    attention.attention = seen_attend  # type: ignore[assignment]
    batches = [context_part(b, mesh.context_rank, mesh.context_size) for b in micro_batches(plan, 0, 0, False)]
    built.forward_backward(batches, 1e-3, dropout_seed(7, 0, mesh.data_rank))
    return masks


def within(count: int, draws: int, probability: float) -> bool:
    """Whether a count is one that so many draws give, within five standard deviations (one in two million is not)."""
    return abs(count - draws * probability) <= 5 * math.sqrt(draws * probability * (1 - probability))


DRAWS: dict[str, tuple[int, list[str], bool]] = {  # ranks, arguments, whether their hidden states are copies
    "one rank": (1, [], False),
    "data 2": (2, [], False),
    "tensor 2": (2, ["--parallel.tensor=2"], True),
    "tensor 2, sequence parallel": (2, ["--parallel.tensor=2", "--parallel.sequence_parallel=true"], False),
    "context 2": (2, ["--parallel.context=2"], False),
    "context 2, tensor 2, sequence parallel": (
        4,
        ["--parallel.context=2", "--parallel.tensor=2", "--parallel.sequence_parallel=true"],
        False,
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_masks_of_parts_are_as_random_as_one_ranks(name: str) -> None:
    """Keep rates are binomial; masks of two sites, micro-batches or ranks agree as often as independent ones do."""
    num_ranks, arguments, are_copies = DRAWS[name]
    by_rank = run_ranks(num_ranks, drawn_masks, num_ranks, [*BOTH, *arguments])
    keep = 1 - PROBABILITY
    agree = keep**2 + PROBABILITY**2
    for kind in ("hidden", "attention"):
        for masks in by_rank:
            assert len(masks[kind]) == {"hidden": 9, "attention": 4}[kind] * len(masks["attention"]) // 4
            kept = torch.cat([mask.flatten() for mask in masks[kind]])
            assert within(int(kept.sum()), kept.numel(), keep), name
            for one, other in combinations(masks[kind], 2):
                assert within(int((one == other).sum()), one.numel(), agree)
        for first, second in combinations(by_rank, 2):
            for one, other in zip(first[kind], second[kind], strict=True):
                if kind == "hidden" and are_copies:
                    assert torch.equal(one, other)
                else:
                    assert within(int((one == other).sum()), one.numel(), agree)


def test_the_bound_notices_a_wrong_rate_and_equal_masks() -> None:
    assert within(8_000, 10_000, 0.8)
    assert not within(8_250, 10_000, 0.8)
    assert not within(10_000, 10_000, 0.68)
