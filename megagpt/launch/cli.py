"""`megagpt launch torchrun|deepspeed|slurm CONFIG …`: checks a run, then starts it or submits it; --dry-run shows how.

In: arguments. Out: the launcher in this process's place, or a submitted job. What a launcher is told is in
`commands.py`, what a job's script says in `slurm.py`.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from megagpt.config_cli import CommandParser, config_arguments_help, split_arguments, unknown_argument
from megagpt.config_file import load_config
from megagpt.errors import ConfigError
from megagpt.launch.check import add_training_options, check_run, count_gpus, training_words
from megagpt.launch.commands import (
    DEFAULT_PORT,
    ELASTIC_RESTARTS,
    Address,
    TorchrunOptions,
    deepspeed_command,
    parse_nodes,
    torchrun_command,
)
from megagpt.launch.hosts import read_hostfile
from megagpt.launch.slurm import SCRIPT, JobOptions, JobPlace, check_time_limit, find_repository, render, submit
from megagpt.plan import RunPlan
from megagpt.plan_gpus import find_gpu
from megagpt.plan_layout import describe_axes
from megagpt.training.profile_options import settle_profile_words

_NODE_GPUS = 8  # of a DGX or HGX
_USAGE = """usage: megagpt launch COMMAND CONFIG [arguments] [--section.key VALUE ...]

commands:
  slurm         check a run and submit it as a job
  torchrun      check a run and start it with torchrun, on one machine or, the same line on each, on several
  deepspeed     check a run and start it with DeepSpeed's launcher

megagpt launch COMMAND --help says more."""


def main(argv: list[str]) -> int:
    """Run `megagpt launch ARGV...`. Raises what a user can cause."""
    commands: dict[str, Callable[[list[str]], int]] = {"slurm": _slurm, "torchrun": _torchrun, "deepspeed": _deepspeed}
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] not in commands:
        raise ConfigError(f"megagpt launch has no command {argv[0]!r}; use one of {', '.join(commands)}")
    return commands[argv[0]](argv[1:])


def _torchrun(argv: list[str]) -> int:
    parser = _parser("torchrun", "Checks a run and starts it with torchrun.")
    _add_ranks(parser)
    parser.add_argument(
        "--nnodes",
        default="1",
        metavar="N",
        help="number of machines, or MIN:MAX where they may come and go (default: 1)",
    )
    parser.add_argument(
        "--rendezvous",
        metavar="HOST:PORT",
        help=f"where several machines meet; HOST is one of them (port: {DEFAULT_PORT})",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=None,
        metavar="N",
        help=f"how often all ranks start again after one of them failed (default: 3, with MIN:MAX {ELASTIC_RESTARTS})",
    )
    options, config_arguments = _parse(parser, argv)
    nodes = parse_nodes(options.nnodes)
    ranks = options.ranks or max(1, count_gpus())
    run = check_run(options, config_arguments, [ranks * nodes.least, ranks * nodes.most], elsewhere=False)
    restarts = options.max_restarts
    if restarts is None:
        restarts = 3 if nodes.least == nodes.most else ELASTIC_RESTARTS
    logs = Path(run.loaded.config.run.folder) / "logs" / "torchrun"
    asked = TorchrunOptions(ranks, nodes, options.rendezvous, restarts, logs)
    command = torchrun_command(asked, [options.config, *training_words(options), *config_arguments])
    return _start(command, ranks, options.dry_run)


def _deepspeed(argv: list[str]) -> int:
    parser = _parser("deepspeed", "Checks a run and starts it with DeepSpeed's launcher.")
    _add_ranks(parser)
    parser.add_argument(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help='machines, a line each such as "worker-1 slots=8"; needs pdsh and ssh',
    )
    parser.add_argument(
        "--master-addr", metavar="HOST", help="address of the first machine (default: what `hostname -I` says there)"
    )
    parser.add_argument("--master-port", type=int, default=DEFAULT_PORT, help=f"its port (default: {DEFAULT_PORT})")
    options, config_arguments = _parse(parser, argv)
    gpus = count_gpus()
    hosts = read_hostfile(options.hostfile) if options.hostfile is not None else None
    ranks = options.ranks or max(1, gpus)
    check_run(options, config_arguments, [hosts.ranks if hosts else ranks], elsewhere=False)
    where = Address(options.master_addr, options.master_port)
    arguments = [options.config, *training_words(options), *config_arguments]
    command = deepspeed_command(ranks, gpus > 0, hosts, options.hostfile, where, arguments)
    return _start(command, hosts.most_ranks if hosts else ranks, options.dry_run)


def _slurm(argv: list[str]) -> int:
    parser = _parser("slurm", "Checks a run and submits it as a SLURM job.")
    _add_job_options(parser)
    options, config_arguments = _parse(parser, argv)
    if options.time is not None:
        check_time_limit(options.time)
    loaded = load_config(options.config, config_arguments)
    gpu, count = find_gpu(loaded), loaded.config.cluster.num_gpus
    gpus = options.gpus_per_node if options.gpus_per_node is not None else (gpu.gpus_per_node if gpu else _NODE_GPUS)
    ranks = options.ranks_per_node or gpus or 1
    nodes = options.nodes or (-(-count // ranks) if count else 1)
    run = check_run(options, config_arguments, [nodes * ranks], elsewhere=True)
    folder = Path(run.loaded.config.run.folder)
    logs = folder.absolute() / "logs"
    job = JobOptions(
        name=loaded.config.run.name,
        nodes=nodes,
        gpus_per_node=gpus,
        ranks_per_node=ranks,
        log=Path(str(logs).replace("%", "%%")) / "slurm-%j.log",
        time=options.time,
        partition=options.partition,
        account=options.account,
        cpus_per_task=options.cpus_per_task,
        extra=tuple(word for text in options.sbatch for word in shlex.split(text)),
    )
    repository = find_repository()
    arguments = [options.config, *training_words(options), *config_arguments]
    text = render((repository / SCRIPT).read_text(encoding="utf-8"), job, JobPlace(repository, Path.cwd()), arguments)
    if options.dry_run:
        print(text, end="")
        return 0
    logs.mkdir(parents=True, exist_ok=True)
    script = logs / "slurm.sbatch"
    script.write_text(text, encoding="utf-8")
    _print_submitted(submit(script), job, run.plans[0], logs)
    return 0


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nodes", type=int, metavar="N", help="nodes (default: as many as cluster.num_gpus needs, or 1)"
    )
    parser.add_argument(
        "--gpus-per-node",
        type=int,
        metavar="G",
        help="GPUs of each node; 0: train on CPUs (default: cluster.gpu's, or 8)",
    )
    parser.add_argument("--ranks-per-node", type=int, metavar="R", help="ranks on each node (default: its GPUs)")
    parser.add_argument("--cpus-per-task", type=int, metavar="C", help="cores of each node, for all of its ranks")
    parser.add_argument("--time", metavar="TIME", help="time limit, as 24:00:00; the job saves before it and goes on")
    parser.add_argument("--partition", help="partition")
    parser.add_argument("--account", help="account")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTIONS",
        help='further options of sbatch, as --sbatch="--qos=high --exclude=node7"; may be repeated',
    )


def _print_submitted(number: str, job: JobOptions, plan: RunPlan, logs: Path) -> None:
    layout, log = plan.layout, logs / f"slurm-{number}.log"
    axes = describe_axes(layout.tensor, layout.context, layout.pipeline, layout.data)
    print(f"submitted job {number}: {job.nodes} nodes with {job.ranks_per_node} ranks each ({axes})")
    print(f"  log            {log}")
    print(f"  follow         tail -F {shlex.quote(str(log))}")
    print(f"  state          squeue --jobs {number}")
    print(f"  save and stop  scancel --batch --signal=TERM {number}")
    print(f"  cancel         scancel {number}")


def _add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, metavar="R", help="ranks on this machine (default: its GPUs, or 1)")


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"megagpt launch {name}",
        description=description,
        usage=f"megagpt launch {name} CONFIG [options] [--section.key VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, or the name of a shipped one such as gpt3-base")
    parser.add_argument("--dry-run", action="store_true", help="check the run and show what would be started")
    add_training_options(parser)
    return parser


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command's own options, and the configuration's arguments."""
    own, config_arguments = split_arguments(argv)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    config_arguments_help(parser)
    options, unknown = parser.parse_known_args(settle_profile_words(own))
    if unknown:
        wrong = [word for word in unknown if word.startswith("-")] or unknown
        raise ConfigError([unknown_argument(word, flags) for word in wrong])
    for name in ("ranks", "nodes", "ranks_per_node", "cpus_per_task"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is not 1 or more")
    if (getattr(options, "gpus_per_node", None) or 0) < 0:
        raise ConfigError(f"--gpus-per-node {options.gpus_per_node} is not 0 or more")
    return options, config_arguments


def _start(command: list[str], ranks_here: int, dry_run: bool) -> int:
    """Become the launcher, or show its command line."""
    if dry_run:
        print(shlex.join(command))
    else:
        # torchrun would give each rank one thread
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks_here)))
        sys.stdout.flush()
        os.execv(command[0], command)
    return 0
