"""What is done about a step that is not like the others. In: what all ranks know of it. Out: the same on every rank.

A loss or gradient that is not finite stops the run, or, with faults.not_finite = "skip", its update is left out: the
batch counts as read, and weights, moments and AdamW's step count stay as they were. The gradient of fp16 is not our
business: where it overflows, DeepSpeed leaves the update out itself and lowers the loss scale.

A loss that is far above those before it, for some steps in a row, asks for a rewind (rewind.py), if that is wanted.
"""

import math
from dataclasses import replace

from rich.console import Console

from megagpt.checkpoint.fault_history import FaultHistory
from megagpt.config import RunConfig
from megagpt.data.sample_skips import after_skips
from megagpt.errors import TrainingError
from megagpt.parallel.engine import UpdateResult
from megagpt.plan_batches import StepBatch
from megagpt.training.signs import RankSigns, check_finite, describe_not_finite
from megagpt.training.spikes import is_spike
from megagpt.training.totals import StepTotals


class Policies:
    """Decides step by step. Every rank has one and calls it with the same numbers; `console` is silent but on rank 0.

    `history` is what a checkpoint keeps of it.
    """

    def __init__(self, config: RunConfig, history: FaultHistory, console: Console) -> None:
        self.history = history
        self._faults, self._console = config.faults, console
        self._fp16 = config.train.precision == "fp16"
        self._is_skipped = False  # the present step

    def samples_of(self, batch: StepBatch) -> StepBatch:
        """The plan's batch of a step, with the samples that it reads in this run."""
        return after_skips(batch, self.history.skips)

    def may_update(self, signs: list[RankSigns], step: int) -> bool:
        """Whether the 0-based step is fit for an update. Raises TrainingError where training must stop."""
        if self._faults.not_finite == "stop":
            check_finite(signs, step)
        trouble = describe_not_finite(signs)
        self._is_skipped = trouble is not None
        if trouble is not None:
            self._skip(trouble, step)
        return not self._is_skipped

    def end_step(self, step: int, totals: StepTotals, update: UpdateResult) -> StepTotals:
        """The totals to record of the 0-based step: the loss of one that was left out says nothing, and is NaN.

        Raises TrainingError where training must stop.
        """
        if update.applied or (self._fp16 and not self._is_skipped):
            self.history = replace(self.history, skipped_in_a_row=0)
            self._look_for_spike(totals.loss)
            return totals
        if not self._is_skipped:  # the gradients of every rank are finite, the norm of all together is not
            if self._faults.not_finite == "stop":
                raise TrainingError(
                    f"the norm of the gradient of step {step + 1}, over all ranks, is not finite; its update was left "
                    'out and training stopped. Lower train.lr, or set faults.not_finite = "skip"'
                )
            self._skip("the norm of the gradient over all ranks is not finite", step)
        if self.history.spiking_steps:
            self.history = replace(self.history, spiking_steps=self.history.spiking_steps + 1)
        return totals._replace(loss_sum=math.nan)

    @property
    def wants_rewind(self) -> bool:
        """Whether the loss has been a spike for faults.spike_patience_steps steps in a row."""
        faults = self._faults  # a checkpoint may remember a spike that is no longer looked for
        return faults.spike_factor is not None and self.history.spiking_steps >= faults.spike_patience_steps

    def _look_for_spike(self, loss: float) -> None:
        """The losses of a spike are not among those that the next are measured by."""
        factor, window_steps = self._faults.spike_factor, self._faults.spike_window_steps
        if factor is None:
            self.history = replace(self.history, losses=(), spiking_steps=0)
        elif is_spike(loss, self.history.losses, factor, window_steps):
            self.history = replace(self.history, spiking_steps=self.history.spiking_steps + 1)
        else:
            losses = (*self.history.losses, loss)[-window_steps:]
            self.history = replace(self.history, losses=losses, spiking_steps=0)

    def _skip(self, trouble: str, step: int) -> None:
        skipped, most = self.history.skipped_in_a_row + 1, self._faults.most_skipped_steps
        if skipped > most:
            raise TrainingError(
                f"step {step + 1}: {trouble}; so it was in the {most} steps before it, whose updates were left out, "
                f"and more in a row than faults.most_skipped_steps = {most} are a run that has failed. Go back to an "
                "earlier checkpoint, lower train.lr, or look at the data of this step with "
                f"`megagpt data show RUN --step {step}`"
            )
        self.history = replace(self.history, skipped_in_a_row=skipped)
        self._console.print(
            f"[bold red]step {step + 1} skipped:[/bold red] {trouble}; its update is left out, its batch counts as "
            f'read (faults.not_finite = "skip"; {skipped} in a row, at most {most})',
            highlight=False,
            soft_wrap=True,
        )
