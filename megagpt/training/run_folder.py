"""Can this run write its folder? Asked before a process group starts. In: configuration, plan. Out: or an error."""

import os
import shutil
import tempfile
from pathlib import Path

from megagpt.config_file import LoadedConfig
from megagpt.errors import CheckpointError, ConfigError
from megagpt.plan import RunPlan

_PROBE_BYTES = 1 << 16
_MOMENT_BYTES = 8  # AdamW's two fp32 moments of a parameter


def check_run_folder(loaded: LoadedConfig, plan: RunPlan) -> None:
    """Check that run.folder can be written, or made, and that its disk has room for one checkpoint. Leaves nothing.

    Raises ConfigError or CheckpointError.
    """
    place = Path(loaded.config.run.folder)
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise ConfigError(
            f"{loaded.describe('run.folder')} cannot be written: {os.strerror(error.errno or 0)}; choose another "
            "folder, or give this user room and rights there"
        ) from None
    needed, free = checkpoint_bytes(plan), shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint of this run needs {needed / 2**20:,.0f} MiB, and {loaded.describe('run.folder')} has "
            f"{free / 2**20:,.0f} MiB free; free space there, or choose another folder"
        )


def checkpoint_bytes(plan: RunPlan) -> int:
    """Bytes of a checkpoint's tensors: weights, AdamW's moments and, but for plain fp32, DeepSpeed's fp32 weights."""
    full = plan.config.train.precision == "fp32"
    weight_bytes = 4 if full else 2
    master_bytes = 0 if full and plan.layout.zero_stage == 0 else 4
    return plan.parameters.total * (weight_bytes + master_bytes + _MOMENT_BYTES)
