"""Ranks with made-up seconds: who is named slow, beside whom, once, and who differs by plan."""

import numpy as np
import pytest

from megagpt.config import ParallelSection
from megagpt.plan_layout import Layout, make_layout
from megagpt.training.signs import RankSigns
from megagpt.training.slow_ranks import WINDOW_STEPS, Slowest, SlowRanks


def layout_of(tensor: int = 1, context: int = 1, pipeline: int = 1, data: int = 1) -> Layout:
    parallel = ParallelSection(tensor=tensor, context=context, pipeline=pipeline)
    return make_layout(parallel, 4, tensor * context * pipeline * data)


def watch(
    layout: Layout, windows: list[dict[int, float]], ratio: float = 1.5, base: float = 1.0
) -> tuple[list[str], SlowRanks]:
    """What is said of windows of steps in which ranks take so many times `base` seconds, give or take 5 %."""
    said: list[str] = []
    hosts = [f"gpu{rank // 4}" for rank in range(layout.world_size)]
    watched = SlowRanks(layout, hosts, ratio, said.append)
    jitter = np.random.default_rng(0)
    for factors in windows:
        for _ in range(WINDOW_STEPS):
            seconds = base * jitter.uniform(0.95, 1.05, layout.world_size)
            for rank, factor in factors.items():
                seconds[rank] *= factor
            watched.observe([RankSigns(True, True, 0, float(own)) for own in seconds])
    return said, watched


def test_equal_ranks_are_not_named() -> None:
    said, watched = watch(layout_of(data=8), [{}, {}])
    assert said == []
    assert watched.slowest is not None
    assert watched.slowest.ratio < 1.2


def test_a_slow_rank_is_named_once_and_again_when_it_is_well() -> None:
    slow = {5: 2.0}
    said, watched = watch(layout_of(data=8), [{}, slow, slow, {}])
    assert said == [
        "slow: rank 5 on gpu1 takes 2.0 times as long as the other data ranks (median of 20 steps)",
        "no longer slow: rank 5 on gpu1 takes about as long as the other data ranks (median of 20 steps)",
    ]
    assert watch(layout_of(data=8), [slow])[1].slowest == Slowest(5, pytest.approx(2.0, rel=0.1))
    assert watched.slowest is not None


def test_one_step_that_takes_long_is_no_slow_rank() -> None:
    said: list[str] = []
    watched = SlowRanks(layout_of(data=2), ["a", "b"], 1.5, said.append)
    for step in range(WINDOW_STEPS):
        watched.observe([RankSigns(True, True, 0, 1.0), RankSigns(True, True, 0, 60.0 if step == 3 else 1.0)])
    assert said == []


def test_of_two_ranks_the_slow_one_is_named() -> None:
    said, _ = watch(layout_of(data=2), [{0: 1.8}])
    assert len(said) == 1
    assert said[0].startswith("slow: rank 0 on gpu0 takes 1.8 times as long as")


def test_the_ratio_counts_and_0_is_never() -> None:
    assert watch(layout_of(data=4), [{1: 1.4}])[0] == []
    assert len(watch(layout_of(data=4), [{1: 1.4}], ratio=1.3)[0]) == 1
    assert watch(layout_of(data=4), [{1: 9.0}], ratio=0)[0] == []


def test_milliseconds_are_noise() -> None:
    assert watch(layout_of(data=4), [{1: 2.0}], base=0.005)[0] == []
    assert len(watch(layout_of(data=4), [{1: 2.0}], base=0.05)[0]) == 1


def test_ranks_that_wait_for_each_other_are_named_together() -> None:
    """Tensor 2 × context 2: ranks 4 to 7 are data rank 1; one of them is slow, the others wait inside the passes."""
    said, _ = watch(layout_of(tensor=2, context=2, data=3), [{4: 2.0, 5: 2.0, 6: 2.0, 7: 2.0}])
    assert said == [
        "slow: ranks 4 to 7 on gpu1, one of which makes the others wait, take 2.0 times as long as "
        "the other data ranks (median of 20 steps)"
    ]


def test_stages_of_a_pipeline_differ_by_plan() -> None:
    """Pipeline 2 × data 4: the last stage has the head. Slow is who is slow among its own."""
    head = dict.fromkeys(range(4, 8), 2.5)
    assert watch(layout_of(pipeline=2, data=4), [head])[0] == []
    said, watched = watch(layout_of(pipeline=2, data=4), [{**head, 2: 2.0}])
    assert said == [
        "slow: rank 2 on gpu0 takes 2.0 times as long as the other data ranks of pipeline rank 0 (median of 20 steps)"
    ]
    assert watched.slowest is not None
    assert watched.slowest.rank == 2


def test_without_another_data_rank_there_is_nothing_to_compare() -> None:
    said, watched = watch(layout_of(tensor=4, pipeline=2), [{1: 5.0}])
    assert (said, watched.slowest) == ([], None)


@pytest.mark.parametrize("data", [3, 4, 7, 8])
def test_the_median_is_that_of_the_others(data: int) -> None:
    seconds = np.random.default_rng(data).uniform(1, 2, data)
    said: list[str] = []
    watched = SlowRanks(layout_of(data=data), ["a"] * data, 1.5, said.append)
    watched.observe([RankSigns(True, True, 0, float(own)) for own in seconds])
    ratios = [seconds[rank] / np.median(np.delete(seconds, rank)) for rank in range(data)]
    assert watched.slowest == Slowest(int(np.argmax(ratios)), pytest.approx(max(ratios)))
