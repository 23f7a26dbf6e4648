"""What a run remembers of its faults, in every checkpoint, so that a resumed run decides as the unbroken one would."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FaultHistory:
    """As of a step; the same on every rank."""

    skipped_in_a_row: int = 0  # updates left out up to this step, without one applied between

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> "FaultHistory":
        """What `dataclasses.asdict` made of it; None: a run without faults. Raises TypeError for anything else."""
        return cls(**values) if values is not None else cls()
