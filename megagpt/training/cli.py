"""`megagpt train CONFIG`, on one rank or, under torchrun, srun or the DeepSpeed launcher, on each of many.

Order: configuration, plan, tokenizer, data and checkpoint are read and checked on every rank, then the process group
starts, then training. What a configuration gets wrong is said before anything slow is imported.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

from megagpt.config_cli import CommandParser, config_arguments_help, split_arguments, unknown_argument
from megagpt.config_file import load_config
from megagpt.errors import ConfigError, DataError, LostPeer, MegagptError, no_rights
from megagpt.parallel.launcher import launched_local_rank, launched_rank, launched_world_size
from megagpt.training.exit_status import COMPLETE, INTERRUPTED, RESTART, STOPPED, USER_ERROR
from megagpt.training.profile_options import (
    add_profile_options,
    parse_profile,
    profiled_steps,
    settle_profile_words,
    silence_profiler,
)
from megagpt.training.run_session import RunSession
from megagpt.training.stop import StopSignals

_PIPE_WIDTH = 160
_TURN_SECONDS = 5.0


def main(argv: list[str]) -> int:
    """Train. Returns an exit status of exit_status.py."""
    rank = launched_rank()
    console = Console(quiet=rank != 0, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    status = USER_ERROR
    try:
        own, config_arguments = split_arguments(argv)
        words = settle_profile_words([word for word in own if not word.startswith("--local_rank")])
        options, unknown = _parser().parse_known_args(words)
        if unknown:
            flags = [word for word in unknown if word.startswith("-")] or unknown
            known = ["--resume", "--trace", "--profile", "--profile-ranks", "--allow-data-change", "--help"]
            raise ConfigError([unknown_argument(word, known) for word in flags])
        if options.resume is not None:
            config_arguments.append(f"--checkpoint.resume={options.resume}")
        loaded = load_config(options.config, config_arguments)
        if (profile := parse_profile(options)) is not None:
            silence_profiler()

        # signals are heard before anything slow: ranks that were asked to stop do so together
        with StopSignals() as stop, RunSession(Path(loaded.config.run.folder), console, rank) as session:
            from megagpt.training.prepare import prepare_run

            session.take_lock()
            prepared = prepare_run(loaded, launched_world_size(), allow_data_change=options.allow_data_change)
            profiled = profiled_steps(profile, prepared) if profile is not None else None
            if profile is not None and profiled is None:
                console.print(
                    f"no profile: this session begins with step {prepared.first_step + 1}, after those of --profile"
                )
            from megagpt.training.session import describe_start, run_training

            session.start(prepared)
            status = STOPPED
            describe_start(prepared, console)
            run_training(prepared, console, session, stop, options.trace, profiled)
    except LostPeer as lost:
        print(lost, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(RESTART)  # taking down process groups whose ranks are gone may wait for them
    except (MegagptError, PermissionError) as raised:
        error = no_rights(raised) if isinstance(raised, PermissionError) else raised
        _wait_for_turn(rank)
        _print_error(error, f"rank {rank}: " if rank else "")
        return USER_ERROR if isinstance(error, DataError) else status
    except KeyboardInterrupt:
        if rank == 0:
            print("interrupted; the same command continues from the latest checkpoint", file=sys.stderr, flush=True)
        if _is_kept():
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        return INTERRUPTED
    return COMPLETE


def _is_kept() -> bool:
    """Whether Python would wait for a thread before it ends, such as one that writes a checkpoint."""
    return any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())


def _wait_for_turn(rank: int) -> None:
    """Let rank 0 speak for all: a launcher ends every rank as soon as the first one has ended.

    Rank 0 does not wait, the first rank of another machine does, and the rest wait longer. A rank that is still there
    after that has an error that nobody else has told.
    """
    if rank:
        time.sleep(_TURN_SECONDS if launched_local_rank() == 0 else 2 * _TURN_SECONDS)


def _print_error(error: MegagptError, prefix: str) -> None:
    console = Console(stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH)
    for problem in error.problems if isinstance(error, ConfigError) else [str(error)]:
        console.print(f"error: {prefix}{problem}", style="red", highlight=False, markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="megagpt train",
        description="Trains a configuration. Start it under torchrun, srun or deepspeed for more than one rank.",
        usage="megagpt train CONFIG [--resume auto|latest|never] [--allow-data-change] [--trace] [--profile [STEPS]] "
        "[--profile-ranks RANKS] [--section.key VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, or the name of a shipped one such as gpt3-base")
    parser.add_argument(
        "--trace",
        action="store_true",
        help="write RUN/trace.json: what every rank did when in the session's second and third step",
    )
    add_profile_options(parser)
    parser.add_argument(
        "--resume", metavar="POLICY", help="auto, latest or never: a short form of --checkpoint.resume POLICY"
    )
    parser.add_argument(
        "--allow-data-change",
        action="store_true",
        help="go on with other data than the checkpoint was trained on, from where it stands; the tokenizer stays",
    )
    config_arguments_help(parser)
    return parser
