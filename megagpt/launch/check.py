"""Does this run work on so many ranks? Asked where it is launched, before anything is started or submitted."""

import shutil
import subprocess
from typing import NamedTuple

from megagpt.config_file import LoadedConfig, load_config
from megagpt.errors import ConfigError
from megagpt.plan import RunPlan


class CheckedRun(NamedTuple):
    """A configuration, and its plans: one for each number of ranks that it may start with."""

    loaded: LoadedConfig
    plans: tuple[RunPlan, ...]


def check_run(config: str, config_arguments: list[str], rank_counts: list[int], elsewhere: bool) -> CheckedRun:
    """Read and check all that can be read here: configuration, plan, tokenizer, data, checkpoint, the run's folder.

    `elsewhere`: other machines train, so this one's local folders do not matter. Raises ConfigError, DataError or
    CheckpointError.
    """
    loaded = load_config(config, config_arguments)
    if len(set(rank_counts)) > 1 and not loaded.config.parallel.elastic:
        raise ConfigError(
            f"{' to '.join(map(str, rank_counts))} ranks need a layout for each number; use --parallel.elastic true, "
            "or one number of machines"
        )
    from megagpt.training.prepare import prepare_run  # slow to import

    return CheckedRun(loaded, tuple(prepare_run(loaded, count, elsewhere).plan for count in dict.fromkeys(rank_counts)))


def count_gpus() -> int:
    """GPUs of this machine by nvidia-smi; 0 where there is none."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0
