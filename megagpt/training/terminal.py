"""What a person sees of a run on the terminal: one line a record, and a live progress bar where there is a terminal."""

import math
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from megagpt.training.metrics import CorpusEvaluationRecord, EvaluationRecord, Record, StepRecord


class TerminalSink:
    """Prints records on rank 0. On a terminal a bar below the lines shows how far the run is."""

    def __init__(self, console: Console, num_steps: int, first_step: int) -> None:
        self._console, self._num_steps = console, num_steps
        self._progress: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[status]}"))
            self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
            self._task = self._progress.add_task("training", total=num_steps, completed=first_step, status="")
            self._progress.start()

    def write(self, record: Record) -> None:
        """One line."""
        if isinstance(record, EvaluationRecord):
            self._console.print(describe_evaluation(record), highlight=False)
            return
        self._console.print(describe_step(record, self._num_steps), highlight=False, soft_wrap=True)
        if self._progress is not None:
            status = (
                f"loss {record.loss:.3f}  {record.tokens_per_second:,.0f} tokens/s  ETA {eta(record, self._num_steps)}"
            )
            self._progress.update(self._task, completed=record.step, status=status)

    def rewind(self, step: int) -> None:
        """Turn the bar back; lines stay."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


def eta(record: StepRecord, num_steps: int) -> str:
    """Time left at the present speed, h:mm:ss."""
    return str(timedelta(seconds=round((num_steps - record.step) * record.seconds_per_step)))


def describe_step(record: StepRecord, num_steps: int) -> str:
    """`step 120/600  loss 4.3120  lr 9.80e-04  norm 0.91  8,412 tokens/s  0.051 TFLOP/s  ETA 0:03:12`."""
    parts = [
        f"step {record.step:>{len(str(num_steps))}}/{num_steps}",
        f"loss {record.loss:.4f}",
        f"lr {record.lr:.2e}",
        f"norm {record.grad_norm:.2f}",
    ]
    if math.isnan(record.loss):
        parts = [parts[0], "skipped", parts[2]]
    if record.loss_scale != 1.0:
        parts.append(f"scale {record.loss_scale:g}" + ("" if record.applied else " (overflow: update skipped)"))
    parts += [f"{record.tokens_per_second:,.0f} tokens/s", f"{record.model_tflops:.3g} TFLOP/s"]
    if record.mfu is not None:
        parts.append(f"MFU {record.mfu:.1%}")
    return "  ".join([*parts, f"ETA {eta(record, num_steps)}"])


def describe_evaluation(record: EvaluationRecord) -> str:
    """The validation loss beside the unigram entropy of the same text."""
    below = record.unigram_entropy - record.validation_loss
    where = f" on {escape(record.corpus)}" if isinstance(record, CorpusEvaluationRecord) else ""
    return (
        f"[bold]validation{where} after step {record.step}: loss {record.validation_loss:.4f}[/bold] nats/token, "
        f"perplexity {record.perplexity:.1f}; unigram entropy of the same text {record.unigram_entropy:.4f}: "
        f"{abs(below):.2f} nats {'below' if below >= 0 else 'above'} it"
    )
