"""`megagpt health CONFIG`: is this node, or each node of a SLURM job (srun, one task a node), fit to train on?

In: arguments and SLURM's variables. Out: a line a node, and exit status 1 where one is not fit. Ends in time where a
node does not answer.
"""

import argparse
import os
import shutil
import subprocess
import sys
import threading

from megagpt.config_cli import CommandParser, config_arguments_help, split_arguments, unknown_argument
from megagpt.config_file import load_config
from megagpt.errors import ConfigError, MegagptError
from megagpt.launch.agent import this_node
from megagpt.launch.check import add_training_options, count_gpus
from megagpt.launch.health_node import NodeReport, Wanted, checked_within
from megagpt.parallel.launcher import complete_environment, launched_rank, launched_world_size
from megagpt.plan import make_plan
from megagpt.plan_cli import tokenizer_vocab_size
from megagpt.plan_gpus import elastic_memory_gib

_UNFIT = 1


def main(argv: list[str]) -> int:
    """Check; 0 where every node is fit, 1 where one is not. Raises ConfigError, on node 0 alone."""
    complete_environment(os.environ)
    try:
        before = set(threading.enumerate())  # of others in this process
        reports = _check(_options(argv))
    except MegagptError:
        if launched_rank():
            return _UNFIT  # node 0 says it
        raise
    if launched_rank() == 0:
        print("\n".join(describe(report) for report in reports), flush=True)
    unfit = [report.node for report in reports if report.problems]
    if unfit and launched_rank() == 0:
        print(f"not fit to train on: {', '.join(unfit)}", file=sys.stderr, flush=True)
    status = _UNFIT if unfit else 0
    if launched_world_size() > 1 or set(threading.enumerate()) - before:
        os._exit(status)  # a thread in a driver that hangs, or a group without its other nodes, would keep the process
    return status


def describe(report: NodeReport) -> str:
    """One line: `node1  ok: …` or `node2  NOT FIT: …`."""
    if report.problems:
        return f"{report.node}  NOT FIT: {'; '.join(report.problems)}"
    return f"{report.node}  ok: {', '.join([*report.facts, report.version, f'configuration {report.config}'])}"


def _check(options: argparse.Namespace) -> list[NodeReport]:
    loaded = load_config(options.config, options.config_arguments)
    nodes = launched_world_size()
    gpus = options.gpus if options.gpus is not None else int(os.environ.get("SLURM_GPUS_ON_NODE") or count_gpus())
    ranks = options.ranks_per_node or int(os.environ.get("RANKS_PER_MACHINE", 0)) or gpus or 1
    plan = make_plan(loaded, nodes * ranks, tokenizer_vocab_size(loaded.config), elastic_memory_gib(loaded))
    mine = checked_within(this_node(), options.timeout, Wanted(loaded, plan, gpus))
    if nodes == 1:
        return [mine]
    from megagpt.launch.health_nodes import Meeting, gather_reports

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return gather_reports(mine, Meeting(address, port, launched_rank(), _node_names(nodes), options.timeout))
    except RuntimeError as error:  # node 0 did not answer
        mine.problems.append(f"{address}:{port} does not answer: {str(error).splitlines()[0]}")
        print(describe(mine), file=sys.stderr)
        return [mine]


def _node_names(nodes: int) -> tuple[str, ...]:
    """The nodes in the order of their tasks; numbers where SLURM does not name them."""
    listed = os.environ.get("SLURM_STEP_NODELIST")
    if listed and shutil.which("scontrol"):
        command = ["scontrol", "show", "hostnames", listed]
        names = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if len(names) == nodes:
            return tuple(names)
    return tuple(f"node {number}" for number in range(nodes))


def _options(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="megagpt health",
        description="Checks this machine, or under srun with one task a node each node of the job, before training.",
        usage="megagpt health CONFIG [--gpus N] [--ranks-per-node R] [--timeout SECONDS] [--section.key VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, or the name of a shipped one such as gpt3-base")
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs that a node must have (default: what SLURM gave it, or all there are)",
    )
    parser.add_argument("--ranks-per-node", type=int, metavar="R", help="ranks of a node (default: its GPUs, or 1)")
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="SECONDS", help="for each part of the check (default: 120)"
    )
    add_training_options(parser)  # a job's script hands on everything, what is for training too
    own, config_arguments = split_arguments(argv)
    config_arguments_help(parser)
    options, unknown = parser.parse_known_args(own)
    if unknown:
        wrong = [word for word in unknown if word.startswith("-")] or unknown
        raise ConfigError([unknown_argument(word, ["--gpus", "--ranks-per-node", "--timeout"]) for word in wrong])
    if options.timeout <= 0:
        raise ConfigError(f"--timeout {options.timeout:g} is not a number of seconds over 0")
    options.config_arguments = config_arguments
    return options
