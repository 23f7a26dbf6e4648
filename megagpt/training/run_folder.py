"""Can this run write where it wants to? Asked before a process group starts. In: configuration, plan. Out: an error."""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

from megagpt.config_file import LoadedConfig
from megagpt.errors import CheckpointError, ConfigError
from megagpt.plan import RunPlan

_PROBE_BYTES = 1 << 16


def check_run_folder(loaded: LoadedConfig, plan: RunPlan) -> None:
    """Check that run.folder can be written, or made, and that its disk has room for one checkpoint. Leaves nothing.

    Raises ConfigError or CheckpointError.
    """
    place = _writable_place(loaded, "run.folder")
    needed, free = plan.checkpoint_bytes, shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint of this run needs {needed / 2**20:,.0f} MiB, and {loaded.describe('run.folder')} has "
            f"{free / 2**20:,.0f} MiB free; free space there, or choose another folder"
        )


def check_nvme_folder(loaded: LoadedConfig, plan: RunPlan) -> None:
    """Check that `parallel.nvme_folder` can take this machine's parameter shards, and that DeepSpeed can write them.

    Does nothing unless parameters go to files. Raises ConfigError.
    """
    if plan.layout.offload_parameters != "nvme":
        return
    place = _writable_place(loaded, "parallel.nvme_folder")
    ranks_here = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), plan.layout.world_size)
    needed, free = ranks_here * plan.peak_memory.disk_bytes, shutil.disk_usage(place).free
    here = loaded.describe("parallel.nvme_folder")
    if free < needed:
        raise ConfigError(
            f"{here}: the parameters of {ranks_here} ranks need {needed / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB "
            'are free; free space there, choose another folder, or use parallel.offload_parameters = "cpu"'
        )
    from megagpt.parallel.cpu import patch_deepspeed_for_cpu  # slow, as is DeepSpeed, and only needed here

    patch_deepspeed_for_cpu()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    with contextlib.redirect_stdout(io.StringIO()):
        can_build = AsyncIOBuilder().is_compatible(verbose=False)
    if not can_build:
        raise ConfigError(
            f"{loaded.describe('parallel.offload_parameters')} needs DeepSpeed's asynchronous file access, which needs "
            "libaio and a C++ compiler; install them (Debian and Ubuntu: apt install libaio-dev g++), or use "
            'parallel.offload_parameters = "cpu"'
        )


def _writable_place(loaded: LoadedConfig, key: str) -> Path:
    """The folder named by `key`, or the nearest above it that exists. Raises ConfigError where it cannot be written."""
    place = Path(loaded.value(key))
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise ConfigError(
            f"{loaded.describe(key)} cannot be written: {os.strerror(error.errno or 0)}; choose another "
            "folder, or give this user room and rights there"
        ) from None
    return place
