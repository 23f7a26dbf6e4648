"""`megagpt train CONFIG`, on one rank or, under torchrun, srun or the DeepSpeed launcher, on each of many.

Order: configuration, plan, tokenizer, data and checkpoint are read and checked on every rank, then the process group
starts, then training. What a configuration gets wrong is said before anything slow is imported.
"""

import argparse
import sys

from rich.console import Console

from megagpt.config_cli import CommandParser, config_arguments_help, split_arguments
from megagpt.config_file import load_config
from megagpt.errors import CheckpointError, ConfigError, DataError, MegagptError
from megagpt.parallel.launcher import launched_rank, launched_world_size

_PIPE_WIDTH = 160


def main(argv: list[str]) -> int:
    """Train; 0 when the run is complete, 2 after a user's error, 3 where training had to stop."""
    rank = launched_rank()
    console = Console(quiet=rank != 0, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    try:
        own, config_arguments = split_arguments(argv)
        options = _parser().parse_args([argument for argument in own if not argument.startswith("--local_rank")])
        loaded = load_config(options.config, config_arguments)

        from megagpt.training.prepare import prepare_run

        prepared = prepare_run(loaded, launched_world_size())
    except MegagptError as error:  # the same on every rank
        if rank == 0:
            _print_error(error, "")
        return 2
    from megagpt.training.session import describe_start, run_training

    try:
        describe_start(prepared, console)
        run_training(prepared, console)
    except MegagptError as error:
        # a shard that cannot be read is one rank's own trouble; what stops training is told to all, and said once
        if rank == 0 or isinstance(error, CheckpointError | DataError):
            _print_error(error, f"rank {rank}: " if rank else "")
        return 3
    return 0


def _print_error(error: MegagptError, prefix: str) -> None:
    console = Console(stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH)
    for problem in error.problems if isinstance(error, ConfigError) else [str(error)]:
        console.print(f"error: {prefix}{problem}", style="red", highlight=False, markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="megagpt train",
        description="Trains a configuration. Start it under torchrun, srun or deepspeed for more than one rank.",
        usage="megagpt train CONFIG [--section.key VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, or the name of a shipped one such as gpt3-base")
    config_arguments_help(parser)
    return parser
