"""The batches of a run: what holds for every step, and the ramp's known plateaus."""

from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.config import TrainSection
from megagpt.plan_batches import fitting_micro_batch, plan_batches, ramp_plateaus

LENGTH = 8


def section(**values):
    return TrainSection(**({"batch_ramp_start_tokens": 32, "batch_tokens": 128} | values))


@st.composite
def runs(draw):
    data_ranks = draw(st.integers(1, 4))
    start = data_ranks * draw(st.integers(1, 6))
    full = start * draw(st.integers(1, 12))
    micro = draw(st.sampled_from([m for m in range(1, full // data_ranks + 1) if full // data_ranks % m == 0]))
    train = section(
        batch_tokens=full * LENGTH,
        batch_ramp_start_tokens=start * LENGTH,
        batch_ramp_tokens=draw(st.integers(0, 5000)),
        micro_batch_size=micro,
        tokens=draw(st.integers(1, 20_000)),
    )
    return train, data_ranks


@settings(max_examples=150, deadline=None)
@given(runs())
def test_batches_cover_the_samples_without_gap_and_divide(run):
    train, data_ranks = run
    batches = plan_batches(train, LENGTH, data_ranks)
    sample = tokens = previous = 0
    for step in range(batches.num_steps):
        batch = batches.step_batch(step)
        assert batch.step == step
        assert batch.first_sample == sample
        assert batch.tokens_before == tokens
        assert batch.num_sequences == data_ranks * batch.micro_batch_size * batch.num_micro_batches
        assert batch.micro_batch_size <= train.micro_batch_size
        assert batch.num_sequences >= previous
        increments = train.batch_tokens // train.batch_ramp_start_tokens - 1
        if tokens >= train.batch_ramp_tokens:
            assert batch.num_sequences * LENGTH == train.batch_tokens
            assert batch.micro_batch_size == train.micro_batch_size
        else:  # the definition of the ramp, evaluated for one step
            done = min(increments, tokens * increments // train.batch_ramp_tokens)
            assert batch.num_sequences * LENGTH == train.batch_ramp_start_tokens * (1 + done)
        sample += batch.num_sequences
        tokens += batch.num_sequences * LENGTH
        previous = batch.num_sequences
        assert batches.tokens_after(step) == tokens
    assert batches.total_tokens == tokens >= train.tokens
    assert batches.step_batch(batches.num_steps - 1).tokens_before < train.tokens


def test_known_ramp():
    """32 to 128 tokens in 3 increments over 600 tokens: each size lasts 200 tokens, give or take a step."""
    batches = plan_batches(section(batch_ramp_tokens=600, steps=20), LENGTH, 2)
    assert ramp_plateaus(section(batch_ramp_tokens=600), LENGTH) == [(4, 7), (8, 3), (12, 2)]
    assert [stage.num_sequences for stage in batches.stages] == [4, 8, 12, 16]
    assert [stage.first_step for stage in batches.stages] == [0, 7, 10, 12]
    assert [stage.first_sample for stage in batches.stages] == [0, 28, 52, 76]
    assert batches.step_batch(11) == (11, 64, 12, 1, 6, 512)
    assert batches.step_batch(12) == (12, 76, 16, 1, 8, 608)
    assert batches.step_batch(1012).first_sample == 76 + 16_000
    assert batches.num_steps == 20
    assert batches.total_tokens == (76 + 8 * 16) * LENGTH


def test_a_short_ramp_skips_sizes():
    """One step of 32 tokens is worth three quarters of a ramp of 43 tokens: 2 of 3 increments at once."""
    assert ramp_plateaus(section(batch_ramp_tokens=43), LENGTH) == [(4, 1), (12, 1)]


@pytest.mark.parametrize(
    "values", [{"batch_ramp_tokens": 0}, {"batch_ramp_tokens": 600, "batch_ramp_start_tokens": 128}]
)
def test_no_ramp(values):
    batches = plan_batches(section(**values, tokens=1000), LENGTH, 1)
    assert len(batches.stages) == 1
    assert batches.num_steps == ceil(1000 / 128)
    assert batches.step_batch(3) == (3, 48, 16, 1, 16, 384)


def test_tokens_end_within_the_ramp():
    batches = plan_batches(section(batch_ramp_tokens=600, tokens=300), LENGTH, 1)
    assert batches.num_steps == 9  # 7 steps of 32 and 2 of 64
    assert batches.total_tokens == 352


def test_the_micro_batch_of_the_ramp_is_the_largest_that_fits():
    assert fitting_micro_batch(12, 8) == 6
    assert fitting_micro_batch(7, 4) == 1
    assert fitting_micro_batch(2, 8) == 2
    batches = plan_batches(section(batch_ramp_tokens=600, micro_batch_size=8), LENGTH, 1)
    assert [(stage.micro_batch_size, stage.num_micro_batches) for stage in batches.stages] == [
        (4, 1),
        (8, 1),
        (6, 2),
        (8, 2),
    ]


def test_gpt3_175b_ramp():
    """12B tokens from 16 to 3072 sequences in 191 increments: the first size lasts 12e9 / 191 tokens."""
    train = TrainSection(batch_tokens=6_291_456, batch_ramp_tokens=12 * 10**9)
    plateaus = ramp_plateaus(train, 2048)
    assert len(plateaus) == 191
    assert plateaus[0] == (16, ceil(12e9 / 191 / 32768))
    ramp_tokens = sum(sequences * steps * 2048 for sequences, steps in plateaus)
    assert 12 * 10**9 <= ramp_tokens < 12 * 10**9 + 6_291_456
