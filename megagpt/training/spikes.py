"""What a loss spike is. In: a step's loss and the losses before it. Out: yes or no. Pure.

What others did about spikes, by hand:

- PaLM (Chowdhery et al. 2022, section 5.1) saw about 20 in the run of its largest model. Each time it went back to a
  checkpoint about 100 steps before the spike and skipped 200 to 500 batches, those before and during it; the loss did
  not spike there again, and the same batches did no harm at another state of the weights.
- OPT (Zhang et al. 2022, section 2.5) restarted from an earlier checkpoint with a lower learning rate.
- GLM-130B (Zeng et al. 2022) skipped data at first, then shrank the gradient of the embedding; a spike in the norm of
  the gradient came a few steps before the loss broke down.
- OLMo 2 (2025) counts as spikes the values that are seven standard deviations or more away from the mean of the last
  1,000.

The rule here is OLMo's with a median and the median absolute deviation, which a few spikes in the window do not move.
The loss of early training falls, so that its median lags above it: no false alarm there.
"""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

_DEVIATIONS_PER_MAD = 1.4826  # of a normal distribution


class LossBand(NamedTuple):
    """Where losses have been of late, in nats a token."""

    median: float
    deviation: float  # standard deviation, as the median absolute deviation has it

    def limit(self, factor: float) -> float:
        """The loss above which there is a spike."""
        return self.median + factor * self.deviation


def loss_band(losses: Sequence[float]) -> LossBand:
    """Of at least one loss."""
    middle = median(losses)
    return LossBand(middle, _DEVIATIONS_PER_MAD * median(abs(loss - middle) for loss in losses))


def is_spike(loss: float, losses: Sequence[float], factor: float, window_steps: int) -> bool:
    """Whether `loss` is more than `factor` deviations above the median of `losses`, once there are `window_steps`."""
    return len(losses) >= window_steps and loss > loss_band(losses).limit(factor)
