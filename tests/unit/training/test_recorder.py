"""Rates with a clock of our own: what counts as a step's time, over which steps rates go, and when a record is due."""

import errno
import os

import pytest

from megagpt.config_file import load_config
from megagpt.parallel.engine import UpdateResult
from megagpt.plan import make_plan
from megagpt.training import recorder as recorder_module
from megagpt.training.metrics import CorpusEvaluationRecord, EvaluationRecord
from megagpt.training.recorder import Recorder
from megagpt.training.run_files import CarefulWriter
from megagpt.training.run_state import RunState, StateWriter, read_state
from megagpt.training.totals import StepTotals

SMALL = [
    *("--model.num_layers=2", "--model.num_heads=4", "--model.hidden_size=32", "--model.sequence_length=16"),
    *("--model.vocab_size=100", "--train.batch_tokens=128", "--train.steps=5", "--train.warmup_tokens=0"),
]
UPDATE = UpdateResult(grad_norm=0.5, lr=1e-3, applied=True, loss_scale=1.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


class ListSink:
    def __init__(self) -> None:
        self.records: list = []
        self.closed = False

    def write(self, record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(recorder_module, "time", clock)
    return clock


def run_steps(clock, seconds: list[float], *arguments: str, gpus: int = 1, peak: float | None = None):
    plan = make_plan(load_config(None, [*SMALL, *arguments]), gpus, None)
    sink = ListSink()
    recorder = Recorder(plan, [sink], peak, pytest.fail)
    for step, taken in enumerate(seconds):
        recorder.start_step()
        clock.now += taken
        recorder.end_step(step, StepTotals(256.0 + step, 64), UPDATE)
        clock.now += 500  # evaluation and saving
    return plan, recorder, sink


def test_each_step(clock):
    plan, _, sink = run_steps(clock, [2.0, 4.0], "--log.interval_steps=1")
    first, second = sink.records
    assert (first.step, first.tokens, first.loss) == (1, 128, 4.0)
    assert (second.step, second.tokens, second.loss) == (2, 256, 257 / 64)
    assert (first.seconds_per_step, first.tokens_per_second) == (2.0, 64.0)
    assert (second.seconds_per_step, second.tokens_per_second) == (4.0, 32.0)
    assert first.model_tflops == pytest.approx(64 * plan.flops.total / 1e12)
    assert first.mfu is None
    assert (first.lr, first.grad_norm, first.loss_scale, first.applied) == (1e-3, 0.5, 1.0, True)


def test_rates_are_over_all_steps_since_the_last_record(clock):
    _, _, sink = run_steps(clock, [1.0, 3.0, 5.0, 7.0, 9.0], "--log.interval_steps=2")
    assert [record.step for record in sink.records] == [2, 4, 5], "every second step, and the last"
    assert [record.seconds_per_step for record in sink.records] == [2.0, 6.0, 9.0]
    assert [record.tokens_per_second for record in sink.records] == [64.0, 128 / 6, 128 / 9]


def test_tflops_are_those_of_one_device_and_mfu_is_their_share_of_its_peak(clock):
    plan, _, sink = run_steps(clock, [2.0], gpus=4, peak=1e-6)
    assert sink.records[0].model_tflops == pytest.approx(64 * plan.flops.total / 4 / 1e12)
    assert sink.records[0].mfu == pytest.approx(sink.records[0].model_tflops / 1e-6)


def test_tokens_follow_the_batch_ramp(clock):
    ramp = ["--train.batch_ramp_start_tokens=32", "--train.batch_ramp_tokens=96"]
    plan, _, sink = run_steps(clock, [1.0] * 4, *ramp)
    sizes = [plan.step_batch(step).num_sequences * 16 for step in range(4)]
    assert sizes[0] == 32
    assert len(set(sizes)) > 1
    assert [record.tokens for record in sink.records] == [sum(sizes[: step + 1]) for step in range(4)]
    assert [record.tokens_per_second for record in sink.records] == [float(size) for size in sizes]


def test_evaluation(clock):
    _, recorder, sink = run_steps(clock, [])
    record = recorder.evaluated(3, StepTotals(200.0, 100), 5.5)
    assert record == EvaluationRecord(3, 2.0, pytest.approx(7.38905609893065), 5.5, 100)
    one = recorder.evaluated(3, StepTotals(200.0, 100), 5.5, "wiki")
    assert isinstance(one, CorpusEvaluationRecord)
    assert one.corpus == "wiki"
    assert sink.records == [record, one]
    recorder.close()
    assert sink.closed


def test_the_state_is_kept_near_the_truth(clock, tmp_path):
    plan = make_plan(load_config(None, SMALL), 1, None)
    state = StateWriter(tmp_path, RunState("running", 1, 0, 10, "", "host", 1), CarefulWriter(pytest.fail))
    recorder = Recorder(plan, [], None, pytest.fail, state)
    for step in range(3):
        recorder.start_step()
        clock.now += 2
        recorder.end_step(step, StepTotals(256.0, 64), UPDATE)
    now = state.state
    assert (now.step, now.loss, now.seconds_per_step, now.eta_seconds) == (3, 4.0, 2.0, 14.0)
    recorder.rewind(1)
    assert read_state(tmp_path).step == 1


class FullDiskSink(ListSink):
    full = True

    def write(self, record) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(record)

    def close(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_a_record_and_not_the_run(clock):
    plan = make_plan(load_config(None, SMALL), 1, None)
    full, sink, troubles = FullDiskSink(), ListSink(), []
    recorder = Recorder(plan, [full, sink], None, troubles.append)
    for step, has_room in enumerate([False, False, True, False]):
        full.full = not has_room
        recorder.start_step()
        clock.now += 1
        recorder.end_step(step, StepTotals(256.0, 64), UPDATE)
    recorder.close()
    assert [record.step for record in sink.records] == [1, 2, 3, 4], "the other sinks go on"
    assert [record.step for record in full.records] == [3]
    assert sink.closed
    assert troubles == [  # once, until it could be written again
        *(
            f"metrics of step {step} could not be written; training goes on: No space left on device; "
            "free space on the disk of run.folder"
            for step in (1, 4)
        ),
        "the last metrics could not be written: No space left on device; free space on the disk of run.folder",
    ]
