"""The batches of a run: how many sequences each step reads, from which sample on, in which micro-batches.

In: the train section and the number of data-parallel ranks. Out: BatchPlan, whose `step_batch` is a pure function of
the step. Knows nothing of files, tensors or ranks.

The batch ramp follows Megatron-LM (`num_microbatches_calculator.py`, RampupBatchsizeNumMicroBatchesCalculator),
counted in tokens. The batch starts at b = batch_ramp_start_tokens and grows by b a time, in k = batch_tokens / b - 1
increments. A step that begins after t tokens has min(k, floor(t * k / batch_ramp_tokens)) increments. So each size
lasts batch_ramp_tokens / k tokens, give or take the step that crosses into the next, and the first step that begins
at or after batch_ramp_tokens has the full batch.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from megagpt.config import TrainSection


class StepBatch(NamedTuple):
    """The global batch of one step: samples first_sample … first_sample + num_sequences - 1 of the sample order.

    Each data-parallel rank takes an equal contiguous block and cuts it into num_micro_batches of micro_batch_size
    sequences. `tokens_before` are those of all earlier steps.
    """

    step: int
    first_sample: int
    num_sequences: int
    micro_batch_size: int
    num_micro_batches: int
    tokens_before: int


@dataclass(frozen=True)
class RampStage:
    """Consecutive steps with one batch size; the last stage has no end (num_steps None)."""

    first_step: int
    num_steps: int | None
    first_sample: int
    num_sequences: int
    micro_batch_size: int
    num_micro_batches: int


@dataclass(frozen=True)
class BatchPlan:
    """All batches of a run. `stages` are the plateaus of the batch ramp and then the full batch."""

    sequence_length: int
    stages: tuple[RampStage, ...]
    num_steps: int
    total_tokens: int

    def step_batch(self, step: int) -> StepBatch:
        """The batch of a 0-based step, in O(log stages). Steps beyond `num_steps` continue with the full batch."""
        assert step >= 0, step
        stage = self.stages[bisect_right(self.stages, step, key=lambda stage: stage.first_step) - 1]
        first_sample = stage.first_sample + (step - stage.first_step) * stage.num_sequences
        return StepBatch(
            step,
            first_sample,
            stage.num_sequences,
            stage.micro_batch_size,
            stage.num_micro_batches,
            first_sample * self.sequence_length,
        )

    def tokens_after(self, step: int) -> int:
        """Tokens trained on once the 0-based step is done."""
        batch = self.step_batch(step)
        return batch.tokens_before + batch.num_sequences * self.sequence_length


def ramp_plateaus(train: TrainSection, sequence_length: int) -> list[tuple[int, int]]:
    """(sequences a step, steps) of each plateau before the full batch. Needs a start that divides the full batch."""
    full, start = train.batch_tokens // sequence_length, train.batch_ramp_start_tokens // sequence_length
    if train.batch_ramp_tokens == 0 or full == start:
        return []
    assert full % start == 0, (full, start)
    num_increments, ramp_tokens = full // start - 1, train.batch_ramp_tokens
    plateaus, tokens, increment = [], 0, 0
    while increment < num_increments:
        sequences = start * (1 + increment)
        missing_tokens = ramp_tokens * (increment + 1) - tokens * num_increments  # times num_increments, to stay exact
        steps = _ceil_divide(missing_tokens, sequences * sequence_length * num_increments)
        plateaus.append((sequences, steps))
        tokens += steps * sequences * sequence_length
        increment = min(num_increments, tokens * num_increments // ramp_tokens)
    return plateaus


def fitting_micro_batch(sequences_per_rank: int, micro_batch_size: int) -> int:
    """The largest divisor of a rank's sequences that is at most `micro_batch_size`: the micro-batch of the ramp."""
    return max(
        size for size in range(1, min(sequences_per_rank, micro_batch_size) + 1) if sequences_per_rank % size == 0
    )


def plan_batches(train: TrainSection, sequence_length: int, data_ranks: int) -> BatchPlan:
    """The batches of a run whose sizes were checked: every one divides by the data ranks."""
    stages: list[RampStage] = []
    first_step = first_sample = 0
    for sequences, steps in [*ramp_plateaus(train, sequence_length), (train.batch_tokens // sequence_length, None)]:
        assert sequences % data_ranks == 0, (sequences, data_ranks)
        micro = fitting_micro_batch(sequences // data_ranks, train.micro_batch_size)
        stages.append(RampStage(first_step, steps, first_sample, sequences, micro, sequences // data_ranks // micro))
        first_step += steps or 0
        first_sample += sequences * (steps or 0)
    num_steps = train.steps if train.steps is not None else _steps_for(train.tokens, stages, sequence_length)
    unfinished = BatchPlan(sequence_length, tuple(stages), num_steps, 0)
    return BatchPlan(sequence_length, tuple(stages), num_steps, unfinished.tokens_after(num_steps - 1))


def _steps_for(tokens: int, stages: list[RampStage], sequence_length: int) -> int:
    """The fewest steps that read at least `tokens`."""
    for stage in stages:
        rest = tokens - stage.first_sample * sequence_length
        steps = _ceil_divide(rest, stage.num_sequences * sequence_length)
        if stage.num_steps is None or steps <= stage.num_steps:
            return stage.first_step + steps
    raise AssertionError("the last stage has no end")


def _ceil_divide(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
