"""What a person reads: the lines word for word, the time left, and that no path or message loses its brackets."""

import io

import pytest
from rich.console import Console

from megagpt.training.metrics import CorpusEvaluationRecord
from megagpt.training.terminal import TerminalSink, describe_evaluation, describe_step, eta
from tests.unit.training.records import evaluation_record, step_record


def test_a_step():
    record = step_record(120, loss=4.312, lr=9.8e-4, grad_norm=0.914, tokens_per_second=8412.3, model_tflops=0.0512)
    assert describe_step(record, 600) == (
        "step 120/600  loss 4.3120  lr 9.80e-04  norm 0.91  8,412 tokens/s  0.0512 TFLOP/s  ETA 0:02:00"
    )


def test_step_numbers_line_up():
    assert describe_step(step_record(7), 1000).startswith("step    7/1000  ")


def test_mfu_where_the_peak_is_known():
    assert "  MFU 41.3%  ETA" in describe_step(step_record(1, mfu=0.4126), 10)
    assert "MFU" not in describe_step(step_record(1), 10)


@pytest.mark.parametrize(
    ("applied", "words"), [(True, "  scale 65536  "), (False, "  scale 65536 (overflow: update skipped)  ")]
)
def test_loss_scale_of_fp16(applied, words):
    assert words in describe_step(step_record(1, loss_scale=65536.0, applied=applied), 10)


@pytest.mark.parametrize(
    ("step", "seconds", "left"),
    [
        (600, 1.0, "0:00:00"),
        (599, 1.4, "0:00:01"),
        (0, 1.0, "0:10:00"),
        (0, 6.0, "1:00:00"),
        (100, 1000.0, "5 days, 18:53:20"),
    ],
)
def test_eta(step, seconds, left):
    assert eta(step_record(step, seconds_per_step=seconds), 600) == left


@pytest.mark.parametrize(("loss", "words"), [(4.0, "2.00 nats below it"), (6.5, "0.50 nats above it")])
def test_an_evaluation(loss, words):
    assert describe_evaluation(evaluation_record(40, loss=loss)) == (
        f"[bold]validation after step 40: loss {loss:.4f}[/bold] nats/token, perplexity 54.6; "
        f"unigram entropy of the same text 6.0000: {words}"
    )


def test_an_evaluation_of_one_of_several_corpora():
    record = CorpusEvaluationRecord(40, 4.0, 54.6, 6.0, 1000, "wiki[zh]")
    console = Console(file=io.StringIO(), width=400)
    console.print(describe_evaluation(record))
    assert console.file.getvalue().startswith("validation on wiki[zh] after step 40: loss 4.0000 nats/token")


def test_sink_prints_a_line_a_record():
    console = Console(file=io.StringIO(), width=400)
    sink = TerminalSink(console, 600, 0)
    sink.write(step_record(1))
    sink.write(evaluation_record(1))
    sink.close()
    first, second = console.file.getvalue().splitlines()
    assert first == describe_step(step_record(1), 600)
    assert second.startswith("validation after step 1: loss 4.0000 nats/token, perplexity 54.6")


def test_a_terminal_gets_a_bar_with_loss_speed_and_time_left():
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    sink = TerminalSink(console, 600, 0)
    sink.write(step_record(300))
    sink.close()
    text = console.file.getvalue()
    assert "training" in text
    assert "50%" in text
    assert "loss -25.000  400 tokens/s  ETA 0:01:15" in text
