"""Samples that no step reads, because the run went back before them and on after them. Pure; knows no files.

A step's first sample is that of the plan, plus all samples left out up to it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from megagpt.plan_batches import StepBatch


class SampleSkip(NamedTuple):
    """Between the 0-based step before `step` and that step, `num_samples` samples of the run's order are left out."""

    step: int
    num_samples: int


def num_skipped(skips: Iterable[SampleSkip], step: int) -> int:
    """Samples left out before the 0-based `step`."""
    return sum(skip.num_samples for skip in skips if skip.step <= step)


def after_skips(batch: StepBatch, skips: Iterable[SampleSkip]) -> StepBatch:
    """The plan's batch of a step, at its place in the order of samples; its tokens count as in the plan."""
    return batch._replace(first_sample=batch.first_sample + num_skipped(skips, batch.step))


def go_on_at(skips: Sequence[SampleSkip], batch: StepBatch, first_sample: int) -> tuple[SampleSkip, ...]:
    """The skips of a run that goes back to before `batch.step`, and on from there with sample `first_sample`.

    `batch`: the plan's, of the first step to be done again. What was left out at later steps is part of the new skip.
    """
    kept = tuple(skip for skip in skips if skip.step < batch.step)
    num_samples = first_sample - batch.first_sample - num_skipped(kept, batch.step)
    assert num_samples >= 0, (skips, batch, first_sample)
    return (*kept, SampleSkip(batch.step, num_samples))


def skips_from_json(values: Iterable[Any]) -> tuple[SampleSkip, ...]:
    """Skips from lists of two numbers, as JSON has them. Raises TypeError or ValueError where they are not."""
    return tuple(SampleSkip(int(step), int(num_samples)) for step, num_samples in values)
