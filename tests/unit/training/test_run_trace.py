"""Which steps are traced, the text of a trace file, a file that cannot be written, and the clock of a GPU."""

import errno
import json
import os
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from megagpt.parallel import trace
from megagpt.parallel.trace import RankTrace, StepTrace, StepTracer, chrome_trace, measured_timeline
from megagpt.plan_schedule import TimedPass
from megagpt.training import cli
from megagpt.training.run_trace import RunTrace, traced_steps

TRACES = [
    RankTrace(0, "pipeline 0, tensor 0, data 0", 0, (
        StepTrace(2, 0.0, 40.0, (TimedPass("forward", 0, 0, 1.0, 11.0), TimedPass("backward", 0, 0, 20.0, 40.0))),
        StepTrace(3, 100.0, 50.0, (TimedPass("forward", 0, 0, 2.0, 12.0), TimedPass("backward", 0, 0, 22.0, 42.0))),
    )),
    RankTrace(1, "pipeline 1, tensor 0, data 0", 1, (
        StepTrace(2, 0.0, 20.0, (TimedPass("forward", 0, 0, 11.0, 13.0), TimedPass("backward", 0, 0, 13.0, 20.0))),
        StepTrace(3, 99.0, 22.0, (TimedPass("forward", 0, 0, 12.0, 14.0), TimedPass("backward", 0, 0, 14.0, 22.0))),
    )),
]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "num_steps", "wanted"),
    [(0, 100, [1, 2]), (40, 100, [41, 42]), (0, 3, [1, 2]), (0, 2, [1]), (98, 100, [99]), (0, 1, [0]), (7, 8, [7])],
)
def test_the_second_and_third_step_are_traced(first, num_steps, wanted):
    assert list(traced_steps(first, num_steps)) == wanted


def test_no_step_is_traced_without_the_flag():
    run_trace = RunTrace(None, range(0), None, None)  # type: ignore[arg-type]
    assert [run_trace.of_step(step) for step in range(5)] == [None] * 5
    run_trace.end_step(4)


def test_chrome_trace():
    whole = json.loads(chrome_trace(TRACES))
    assert whole["displayTimeUnit"] == "ms"
    events = whole["traceEvents"]
    names = {(event["pid"], event["name"]): event["args"] for event in events if event["ph"] == "M"}
    assert names[0, "process_name"] == {"name": "rank 0: pipeline 0, tensor 0, data 0"}
    assert names[1, "process_sort_index"] == {"sort_index": 1}
    assert names[1, "thread_name"] == {"name": "schedule"}
    slices = [(e["pid"], e["name"], e["ts"], e["dur"], e["args"]) for e in events if e["ph"] == "X"]
    assert slices[:3] == [
        (0, "step 2", 0.0, 40.0, {"step": 2}),
        (0, "forward", 1.0, 10.0, {"chunk": 0, "micro_batch": 0, "step": 2}),
        (0, "backward", 20.0, 20.0, {"chunk": 0, "micro_batch": 0, "step": 2}),
    ]
    # the ranks' second step begins where rank 0's clock has it
    assert slices[-2:] == [
        (1, "forward", 112.0, 2.0, {"chunk": 0, "micro_batch": 0, "step": 3}),
        (1, "backward", 114.0, 8.0, {"chunk": 0, "micro_batch": 0, "step": 3}),
    ]


def test_the_measured_step_counts_from_its_first_pass():
    timeline = measured_timeline(TRACES, 1)
    assert timeline.total == 40.0
    assert timeline.busy == (30.0, 10.0)
    assert timeline.idle_share == 0.5


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    def replace(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("megagpt.training.run_trace.os.replace", replace)
    monkeypatch.setattr("megagpt.training.run_trace.gather_traces", lambda tracers, mesh: TRACES)
    console = Console(record=True, width=200)
    run_trace = RunTrace(None, range(1, 3), tmp_path / "trace.json", console)  # type: ignore[arg-type]
    run_trace.end_step(1)
    assert console.export_text(clear=False) == ""
    run_trace.end_step(2)
    assert f"{tmp_path}/trace.json could not be written: No space left on device; training goes on" in (
        console.export_text()
    )
    assert list(tmp_path.iterdir()) == []


def test_on_a_gpu_times_are_the_devices(monkeypatch):
    """Marks are events of the device, whose distances torch gives in milliseconds."""
    recorded = []
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.milliseconds = float(len(recorded))
            recorded.append(self)

        def elapsed_time(self, later):
            return later.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(trace.dist, "barrier", lambda device_ids: calls.append(f"barrier {device_ids}"))
    tracer = StepTracer(1, SimpleNamespace(device=torch.device("cuda", 3)))
    tracer.start()
    assert calls == ["synchronize", "barrier [3]", "synchronize"]
    hidden = torch.ones(2, requires_grad=True) * 2
    tracer.timer("forward-backward", log_level=1).start(barrier=True)
    tracer.timer("forward-compute", log_level=2).start()
    tracer.follow(0, 5, hidden)
    tracer.timer("forward-compute").stop()
    tracer.timer("backward-compute", log_level=2).start()
    hidden.sum().backward()
    tracer.timer("backward-compute").stop()
    tracer.end()
    measured = tracer.measured(tracer)
    assert calls[-1] == "synchronize"
    assert measured.passes == (TimedPass("forward", 0, 5, 1e3, 2e3), TimedPass("backward", 0, 5, 3e3, 4e3))
    assert (measured.step, measured.start_us, measured.total_us) == (2, 0.0, 5e3)


def test_a_backward_pass_of_no_micro_batch_is_our_mistake():
    tracer = StepTracer(1, SimpleNamespace(device=torch.device("cpu")))
    tracer.timer("backward-compute").start()
    with pytest.raises(AssertionError, match="a backward pass ended that belongs to no micro-batch"):
        tracer.timer("backward-compute").stop()


@pytest.mark.parametrize("flags", [[], ["--trace"]])
def test_the_flag_reaches_the_session(flags, monkeypatch):
    seen = []
    monkeypatch.setattr("megagpt.training.prepare.prepare_run", lambda *arguments, **options: None)
    monkeypatch.setattr("megagpt.training.session.describe_start", lambda prepared, console: None)
    monkeypatch.setattr("megagpt.training.run_session.RunSession.start", lambda session, prepared: None)
    monkeypatch.setattr("megagpt.training.session.run_training", lambda *arguments: seen.append(arguments[-2]))
    assert cli.main(["gpt3-base", *flags]) == 0
    assert seen == [bool(flags)]


def test_a_misspelt_flag(capsys):
    assert cli.main(["gpt3-base", "--trac"]) == 2
    assert "error: unknown argument --trac (command line); did you mean --trace" in capsys.readouterr().err
