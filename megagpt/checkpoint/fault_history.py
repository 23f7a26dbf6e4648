"""What a run remembers of its faults, in every checkpoint, so that a resumed run decides as the unbroken one would."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megagpt.data.sample_skips import SampleSkip, skips_from_json


@dataclass(frozen=True)
class FaultHistory:
    """As of a step; the same on every rank."""

    skipped_in_a_row: int = 0  # updates left out up to this step, without one applied between
    losses: tuple[float, ...] = ()  # the last ones that were no spike; empty where loss spikes are not looked for
    spiking_steps: int = 0  # steps in a row, up to this one, whose loss is a spike
    num_rewinds: int = 0  # of the whole run
    skips: tuple[SampleSkip, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> "FaultHistory":
        """What JSON has of it; None: a run without faults. Raises TypeError or ValueError for anything else."""
        if values is None:
            return cls()
        losses = tuple(float(loss) for loss in values.get("losses", ()))
        return cls(**{**values, "losses": losses, "skips": skips_from_json(values.get("skips", ()))})
