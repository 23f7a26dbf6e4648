"""`megagpt plan NAME --gpus N`: prints what a configuration comes to, or every problem, without a GPU.

In: arguments. Out: text and an exit status. Starts no process group.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from megagpt.config import RunConfig
from megagpt.config_cli import CommandParser, config_arguments_help, split_arguments, unknown_argument
from megagpt.config_file import load_config
from megagpt.errors import ConfigError, MegagptError, no_rights
from megagpt.plan import RunPlan
from megagpt.plan_draw import check_drawing, draw_schedule
from megagpt.plan_gpus import find_gpu, plan_on_cluster
from megagpt.plan_report import print_plan

if TYPE_CHECKING:
    from megagpt.rehearse.run import Rehearsal

_PIPE_WIDTH = 120
_FLAGS = ["--gpus", "--gpu-memory", "--draw", "--rehearse", "--rank", "--micro-batches", "--help"]


def run_plan_command(argv: list[str]) -> int:
    """Runs the command; 0 where the plan works, 2 where it has problems, which are printed to stderr one a line."""
    try:
        own, config_arguments = split_arguments(argv)
        parser = _parser()
        options, unknown = parser.parse_known_args(own)
        if unknown:
            flags = [argument for argument in unknown if argument.startswith("-")] or unknown
            raise ConfigError([unknown_argument(argument, _FLAGS) for argument in flags])
        if options.draw is not None:
            check_drawing(options.draw)
        loaded = load_config(options.config, config_arguments)
        plan = plan_on_cluster(loaded, options.gpus, tokenizer_vocab_size(loaded.config), options.gpu_memory)
        if options.draw is not None:
            draw_schedule(plan, options.draw)
        rehearsal = _rehearse(plan, options)
    except (MegagptError, PermissionError) as raised:
        error = no_rights(raised) if isinstance(raised, PermissionError) else raised
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        console = Console(stderr=True)
        for problem in problems:
            console.print(f"error: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(width=width)
    print_plan(plan, console)
    if options.draw is not None:
        console.print(f"wrote {options.draw}", highlight=False, markup=False, soft_wrap=True)
    if rehearsal is not None:
        from megagpt.rehearse.report import print_rehearsal

        gpu = find_gpu(loaded)
        memory_gib = options.gpu_memory if options.gpu_memory is not None or gpu is None else gpu.memory_gib
        console.print()
        print_rehearsal(rehearsal, memory_gib, console)
    return 0


def _rehearse(plan: RunPlan, options: argparse.Namespace) -> "Rehearsal | None":
    """The rehearsal that was asked for, if any."""
    if not options.rehearse:
        for flag, value in (("--rank", options.rank), ("--micro-batches", options.micro_batches)):
            if value is not None:
                raise ConfigError(f"{flag} {value} is about a rehearsal; add --rehearse")
        return None
    from megagpt.rehearse.run import rehearse  # imports torch, megatron-core and DeepSpeed

    return rehearse(plan, options.rank, options.micro_batches)


def tokenizer_vocab_size(config: RunConfig) -> int | None:
    """Ids of the configured tokenizer, or None where none is named or the file does not exist yet.

    Raises DataError where the file is not a tokenizer.
    """
    if config.tokenizer.path is None:
        return None
    from megagpt.tokenizer.load import load_tokenizer, split_kind  # needed only for a plan with one

    if not split_kind(config.tokenizer.path)[1].exists():
        return None
    return load_tokenizer(config.tokenizer.path).vocab_size


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="megagpt plan",
        description="Prints what a configuration comes to on so many GPUs, or every problem. Needs no GPU.",
        usage="megagpt plan CONFIG [--gpus N] [--gpu-memory GIB] [--draw FILE] [--rehearse] [--section.key VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, or the name of a shipped one such as gpt3-175b")
    parser.add_argument(
        "--gpus", type=_positive_int, default=None, help="number of GPUs or ranks (default: cluster.num_gpus, or 1)"
    )
    parser.add_argument(
        "--gpu-memory",
        type=_positive_gib,
        default=None,
        help="GiB of one GPU; the plan must fit (default: most of that of cluster.gpu, or not checked)",
    )
    parser.add_argument(
        "--draw",
        type=Path,
        default=None,
        metavar="FILE",
        help="draw one step of the pipeline at the full batch into FILE.png, .svg or .pdf (needs matplotlib)",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run one step of one rank for real, but for the tensors' values: shards, memory, collectives, passes",
    )
    parser.add_argument(
        "--rank", type=int, default=None, metavar="R", help="rank to rehearse (default: the first with the fullest GPU)"
    )
    parser.add_argument(
        "--micro-batches",
        type=int,
        default=None,
        metavar="N",
        help="micro-batches to run in the rehearsal (default: all, or what fills and drains the pipeline)",
    )
    config_arguments_help(parser)
    return parser


def _positive_int(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GPUs of 1 or more")
    return number


def _positive_gib(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in GiB, such as 80")
    return number
