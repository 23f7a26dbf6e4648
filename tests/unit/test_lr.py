"""Known values of every learning-rate schedule, and what holds for all of them."""

import itertools
import math

import pytest

from megagpt.config import TrainSection
from megagpt.training.lr import decay_start_tokens, learning_rate

SCHEDULES = ["cosine", "linear", "constant", "wsd", "noam"]


def section(schedule, **values):
    defaults = {"lr": 1.0, "min_lr_ratio": 0.1, "warmup_tokens": 100, "decay_tokens": 1100, "wsd_decay_share": 0.5}
    return TrainSection(lr_schedule=schedule, **(defaults | values))


@pytest.mark.parametrize(
    ("schedule", "tokens", "rate"),
    [
        ("cosine", 100, 1.0),
        ("cosine", 600, 0.55),
        ("cosine", 350, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 1100, 0.1),
        ("cosine", 10**9, 0.1),
        ("linear", 100, 1.0),
        ("linear", 600, 0.55),
        ("linear", 350, 0.775),
        ("linear", 1100, 0.1),
        ("linear", 2000, 0.1),
        ("constant", 100, 1.0),
        ("constant", 10**12, 1.0),
        ("wsd", 100, 1.0),
        ("wsd", 550, 1.0),
        ("wsd", 825, 0.55),
        ("wsd", 1100, 0.1),
        ("wsd", 5000, 0.1),
        ("noam", 100, 1.0),
        ("noam", 400, 0.5),
        ("noam", 2500, 0.2),
        ("noam", 10**9, 0.1),
    ],
)
def test_known_values(schedule, tokens, rate):
    assert learning_rate(section(schedule), tokens) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_from_zero_then_the_rate_never_rises(schedule):
    train = section(schedule)
    for tokens in (1, 50, 99):
        assert learning_rate(train, tokens) == pytest.approx(tokens / 100, rel=1e-12)
    rates = [learning_rate(train, tokens) for tokens in range(100, 1300, 7)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))
    assert rates[0] == 1.0
    if schedule in ("cosine", "linear", "wsd"):
        assert rates[-1] == 0.1


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_without_warm_up(schedule):
    assert learning_rate(section(schedule, warmup_tokens=0), 1) == pytest.approx(1.0, abs=1e-2)


def test_noam_is_the_published_formula_up_to_its_peak():
    """min(t^-0.5, t w^-1.5) / w^-0.5, Vaswani et al. 2017 §5.3, with no floor."""
    train = section("noam", min_lr_ratio=0.0)
    for tokens in (1, 10, 99, 100, 101, 5000):
        assert learning_rate(train, tokens) == pytest.approx(min(tokens**-0.5, tokens * 100**-1.5) * 10, rel=1e-12)


def test_wsd_share_sets_where_the_decay_begins():
    assert decay_start_tokens(section("wsd", wsd_decay_share=0.2)) == pytest.approx(880)
    assert learning_rate(section("wsd", wsd_decay_share=0.2), 880) == 1.0
    assert learning_rate(section("wsd", wsd_decay_share=0.2), 990) == pytest.approx(0.55)


def test_gpt3_recipe():
    train = TrainSection()
    assert learning_rate(train, 375 * 10**6) == 6e-4
    assert learning_rate(train, 260 * 10**9) == pytest.approx(6e-5)
    assert learning_rate(train, 524_288) == pytest.approx(6e-4 * 524_288 / 375e6)
