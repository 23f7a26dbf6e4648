"""Penalty, top-k and top-p equal transformers'; choices follow the settings and the seed; bad values are named."""

import math

import pytest
import torch

from megagpt.errors import GenerationError
from megagpt.inference.sampling import (
    apply_repetition_penalty,
    choose,
    keep_top_k,
    keep_top_p,
    make_generator,
)
from megagpt.inference.settings import SamplingSettings

transformers = pytest.importorskip("transformers")


def random_logits(rows: int = 5, ids: int = 101) -> torch.Tensor:
    logits = torch.randn(rows, ids, generator=torch.Generator().manual_seed(3)) * 4
    logits[:, 10] = logits[:, 20]  # a tie
    return logits


PREVIOUS = torch.randint(0, 101, (5, 30), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 3.0])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(PREVIOUS, random_logits())
    assert torch.equal(apply_repetition_penalty(random_logits(), PREVIOUS, penalty), theirs)


@pytest.mark.parametrize("top_k", [1, 2, 40, 101, 1000])
def test_top_k_equals_transformers(top_k: int) -> None:
    theirs = transformers.TopKLogitsWarper(top_k)(PREVIOUS, random_logits())
    assert torch.equal(keep_top_k(random_logits(), top_k), theirs)


@pytest.mark.parametrize("top_p", [1e-9, 0.001, 0.3, 0.9, 0.999, 1.0])
def test_top_p_equals_transformers(top_p: float) -> None:
    logits = random_logits()
    theirs = transformers.TopPLogitsWarper(top_p)(PREVIOUS, logits) if top_p < 1 else logits
    assert torch.equal(keep_top_p(logits, top_p), theirs)


def test_all_together_equal_transformers() -> None:
    """The distribution that tokens are drawn from, seen by drawing many."""
    settings = SamplingSettings(temperature=0.7, top_k=8, top_p=0.8, repetition_penalty=1.3)
    logits, previous = random_logits(1), PREVIOUS[:1]
    scores = logits
    for step in [
        transformers.RepetitionPenaltyLogitsProcessor(1.3),
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(8),
        transformers.TopPLogitsWarper(0.8),
    ]:
        scores = step(previous, scores)
    expected = scores.softmax(-1)[0]
    draws = 20_000
    drawn = choose(
        logits.expand(draws, -1), previous.expand(draws, -1), settings, make_generator(settings, logits.device)
    )
    frequency = torch.bincount(drawn, minlength=101) / draws
    assert not bool(frequency[expected == 0].any())
    # five standard errors of a share of 20,000 draws are at most 0.0177
    assert float((frequency - expected).abs().max()) < 0.0177


def test_greedy_takes_the_largest_after_the_penalty() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.0], [-1.0, -2.0, -1.5]])
    previous = torch.tensor([[1, 1], [0, 0]])
    generator = torch.Generator()
    assert choose(logits, previous, SamplingSettings(greedy=True), generator).tolist() == [1, 0]
    assert choose(logits, previous, SamplingSettings(greedy=True, repetition_penalty=2.0), generator).tolist() == [2, 2]


def test_the_same_seed_gives_the_same_choices_and_another_seed_others() -> None:
    logits, previous = torch.zeros(50, 1000), torch.zeros(50, 1, dtype=torch.int64)

    def drawn(seed: int) -> list[int]:
        settings = SamplingSettings(top_p=1.0, seed=seed)
        return choose(logits, previous, settings, make_generator(settings, logits.device)).tolist()

    assert drawn(5) == drawn(5) != drawn(6)


def test_extreme_temperatures_stay_finite() -> None:
    logits = torch.tensor([[80.0, -80.0, 79.0]])
    for temperature in (0.001, 100):
        settings = SamplingSettings(temperature=temperature)
        assert 0 <= int(choose(logits, torch.zeros(1, 1, dtype=torch.int64), settings, torch.Generator())) < 3


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_new_tokens", 0, "a whole number from 1"),
        ("temperature", 0.0, "a number from 0.001 to 100, or greedy"),
        ("temperature", math.nan, "a number from 0.001 to 100, or greedy"),
        ("top_k", -1, "a whole number from 1, or 0 for all ids"),
        ("top_p", 0.0, "a number above 0 and up to 1"),
        ("top_p", 1.01, "a number above 0 and up to 1"),
        ("repetition_penalty", 0.0, "a number from 0.01 to 100"),
        ("repetition_penalty", math.inf, "a number from 0.01 to 100"),
        ("seed", -1, "a whole number from 0 to 2"),
        ("seed", 2**63, "a whole number from 0 to 2"),
    ],
)
def test_values_out_of_range_are_named(name: str, value: float, allowed: str) -> None:
    with pytest.raises(GenerationError, match=f"{name} = {value} is out of range; use {allowed}"):
        SamplingSettings(**{name: value})


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(GenerationError, match=r"temperature = -1 .*\n.*top_k = -2 "):
        SamplingSettings(temperature=-1, top_k=-2)
