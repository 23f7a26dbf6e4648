"""Does this run work on so many ranks? Asked where it is launched, before anything is started or submitted."""

import argparse
import shutil
import subprocess
from typing import NamedTuple

from megagpt.config_file import LoadedConfig, load_config
from megagpt.errors import ConfigError
from megagpt.plan import RunPlan
from megagpt.training.profile_options import (
    add_profile_options,
    parse_profile,
    profile_words,
    profiled_steps,
)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What `megagpt train` takes besides the configuration: handed on to it."""
    parser.add_argument("--trace", action="store_true", help="as megagpt train has it")
    add_profile_options(parser)
    parser.add_argument("--allow-data-change", action="store_true", help="as megagpt train has it")
    parser.add_argument("--resume", metavar="POLICY", help="as megagpt train has it: auto, latest or never")


def training_words(options: argparse.Namespace) -> list[str]:
    """The words of `add_training_options` that were given."""
    words = ["--trace"] * options.trace + ["--allow-data-change"] * options.allow_data_change
    return [*words, *profile_words(options), *(["--resume", options.resume] if options.resume is not None else [])]


class CheckedRun(NamedTuple):
    """A configuration, and its plans: one for each number of ranks that it may start with."""

    loaded: LoadedConfig
    plans: tuple[RunPlan, ...]


def check_run(
    options: argparse.Namespace, config_arguments: list[str], rank_counts: list[int], elsewhere: bool
) -> CheckedRun:
    """Read and check all that can be read here: configuration, plan, tokenizer, data, checkpoint, the run's folder.

    `options`: `config` and those of `add_training_options`. `elsewhere`: other machines train, so this one's local
    folders do not matter. Raises ConfigError, DataError or CheckpointError.
    """
    profile = parse_profile(options)
    policy = [] if options.resume is None else [f"--checkpoint.resume={options.resume}"]
    loaded = load_config(options.config, [*config_arguments, *policy])
    if len(set(rank_counts)) > 1 and not loaded.config.parallel.elastic:
        raise ConfigError(
            f"{' to '.join(map(str, rank_counts))} ranks need a layout for each number; use --parallel.elastic true, "
            "or one number of machines"
        )
    from megagpt.training.prepare import prepare_run  # slow to import

    allow = options.allow_data_change
    runs = [prepare_run(loaded, count, elsewhere, allow) for count in dict.fromkeys(rank_counts)]
    if profile is not None:
        for run in runs:
            profiled_steps(profile, run)
    return CheckedRun(loaded, tuple(run.plan for run in runs))


def count_gpus() -> int:
    """GPUs of this machine by nvidia-smi; 0 where there is none."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0
