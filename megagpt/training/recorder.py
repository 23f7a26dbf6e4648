"""Turns the steps of a run into records: measures time, works out rates, and hands them to the sinks. Rank 0 writes."""

import math
import time
from collections.abc import Callable
from functools import partial

from megagpt.parallel.engine import UpdateResult
from megagpt.plan import RunPlan
from megagpt.training.metrics import (
    CorpusEvaluationRecord,
    EvaluationRecord,
    MetricsSink,
    Record,
    StepRecord,
    perplexity,
)
from megagpt.training.run_state import StateWriter
from megagpt.training.slow_ranks import Slowest
from megagpt.training.totals import StepTotals


class Recorder:
    """Every rank makes one; those of other ranks than 0 have no sinks and write nothing."""

    def __init__(
        self,
        plan: RunPlan,
        sinks: list[MetricsSink],
        peak_tflops: float | None,
        on_trouble: Callable[[str], None],
        state: StateWriter | None = None,
    ) -> None:
        """`on_trouble` is told where a sink cannot write, as on a full disk; the run goes on.

        `state`: of rank 0, kept near the truth.
        """
        self._on_trouble = on_trouble
        self._plan, self._sinks, self._peak_tflops, self._state = plan, sinks, peak_tflops, state
        self._steps = self._tokens = 0
        self._seconds = 0.0
        self._refused: set[MetricsSink] = set()  # those that could not take the last record
        self._started = time.perf_counter()

    def start_step(self) -> None:
        """The clock of a step starts."""
        self._started = time.perf_counter()

    def end_step(self, step: int, totals: StepTotals, update: UpdateResult, slowest: Slowest | None = None) -> None:
        """The 0-based step is done; written every log.interval_steps, at the end, and where it was skipped (NaN)."""
        self._seconds += time.perf_counter() - self._started
        batch = self._plan.step_batch(step)
        tokens = batch.num_sequences * self._plan.spec.sequence_length
        self._steps, self._tokens = self._steps + 1, self._tokens + tokens
        done = step + 1
        if self._state is not None:
            self._state.step_done(done, totals.loss)
        is_due = done % self._plan.config.log.interval_steps == 0 or done == self._plan.num_steps
        if not is_due and not math.isnan(totals.loss):
            return
        rate = self._tokens / self._seconds
        model_tflops = rate * self._plan.flops.total / self._plan.layout.world_size / 1e12
        record = StepRecord(
            step=done,
            tokens=batch.tokens_before + tokens,
            loss=totals.loss,
            lr=update.lr,
            grad_norm=update.grad_norm,
            loss_scale=update.loss_scale,
            applied=update.applied,
            seconds_per_step=self._seconds / self._steps,
            tokens_per_second=rate,
            model_tflops=model_tflops,
            mfu=model_tflops / self._peak_tflops if self._peak_tflops else None,
            slowest_rank=slowest.rank if slowest else None,
            slowest_ratio=slowest.ratio if slowest else None,
        )
        self._steps = self._tokens = 0
        self._seconds = 0.0
        if self._state is not None:
            self._state.measured(record.tokens_per_second, record.seconds_per_step)
        self._write(record)

    def rewind(self, step: int) -> None:
        """The run has gone back to after `step` steps: records of later ones are dropped."""
        self._steps = self._tokens = 0
        self._seconds = 0.0
        if self._state is not None:
            self._state.restart(step)
        for sink in self._sinks:
            self._try(partial(sink.rewind, step), f"records after step {step} could not be dropped")

    def evaluated(
        self, step: int, totals: StepTotals, unigram_entropy: float, corpus: str | None = None
    ) -> EvaluationRecord:
        """An evaluation after `step` updates, on one of several corpora or (None) on all that is held out."""
        numbers = (step, totals.loss, perplexity(totals.loss), unigram_entropy, totals.num_tokens)
        record = EvaluationRecord(*numbers) if corpus is None else CorpusEvaluationRecord(*numbers, corpus)
        self._write(record)
        return record

    def close(self) -> None:
        """Write out all sinks."""
        for sink in self._sinks:
            self._try(sink.close, "the last metrics could not be written")

    def _write(self, record: Record) -> None:
        for sink in self._sinks:
            what = f"metrics of step {record.step} could not be written; training goes on"
            if self._try(partial(sink.write, record), what, said=sink in self._refused):
                self._refused.discard(sink)
            else:
                self._refused.add(sink)

    def _try(self, write: Callable[[], None], what: str, said: bool = False) -> bool:
        """Whether it could be written; trouble that was said of the record before is not said again."""
        try:
            write()
            return True
        except OSError as error:
            if not said:
                self._on_trouble(f"{what}: {error.strerror}; free space on the disk of run.folder")
            return False
