"""Which samples steps read in a run that has gone back."""

import json

from megagpt.config import TrainSection
from megagpt.data.sample_skips import SampleSkip, after_skips, go_on_at, num_skipped, skips_from_json
from megagpt.plan_batches import plan_batches


def plan(**train):
    return plan_batches(TrainSection(batch_tokens=256, steps=100, **train), 32, 1)


def reads(batches, skips, steps):
    return [after_skips(batches.step_batch(step), skips).first_sample for step in steps]


def test_without_skips_a_step_reads_what_the_plan_says():
    batch = plan().step_batch(3)
    assert after_skips(batch, ()) == batch


def test_steps_after_a_rewind_read_on():
    skips = go_on_at((), plan().step_batch(6), 88)
    assert skips == (SampleSkip(6, 40),)
    assert reads(plan(), skips, (5, 6, 7)) == [40, 88, 96]
    assert after_skips(plan().step_batch(7), skips).tokens_before == 7 * 256


def test_a_later_rewind_adds_a_skip():
    skips = go_on_at((SampleSkip(6, 40),), plan().step_batch(20), 400)
    assert reads(plan(), skips, (5, 6, 19, 20)) == [40, 88, 192, 400]
    assert [num_skipped(skips, step) for step in (5, 6, 20)] == [0, 40, 240]


def test_a_rewind_further_back_takes_the_earlier_one_over():
    assert go_on_at((SampleSkip(6, 40),), plan().step_batch(6), 200) == (SampleSkip(6, 152),)
    assert go_on_at((SampleSkip(2, 8), SampleSkip(6, 40)), plan().step_batch(4), 200) == (
        SampleSkip(2, 8),
        SampleSkip(4, 160),
    )


def test_within_a_batch_ramp_samples_are_counted():
    ramp = plan(batch_ramp_start_tokens=64, batch_ramp_tokens=2048)
    skips = go_on_at((), ramp.step_batch(4), ramp.step_batch(9).first_sample)
    assert reads(ramp, skips, (4,)) == [ramp.step_batch(9).first_sample]
    assert after_skips(ramp.step_batch(4), skips).num_sequences == ramp.step_batch(4).num_sequences


def test_skips_survive_json():
    skips = (SampleSkip(6, 40), SampleSkip(20, 7))
    assert skips_from_json(json.loads(json.dumps(skips))) == skips
