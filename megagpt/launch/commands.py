"""The command lines of torchrun and DeepSpeed's launcher for a run. Pure: numbers and words in, arguments out."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from megagpt.errors import ConfigError
from megagpt.launch.hosts import Hosts

RANK_MODULE = "megagpt.launch.rank"
AGENT_MODULE = "megagpt.launch.agent"
DEFAULT_PORT = 29500
# How soon an elastic group goes on: without more nodes after `last_call_timeout` seconds, without a lost one after
# keep_alive_interval × keep_alive_max_attempt. torch's defaults are 30 and 3 × 5.
_ELASTIC_RENDEZVOUS = "last_call_timeout=10"
ELASTIC_RESTARTS = 100  # each node that is lost takes one, of a run that may last months


class Nodes(NamedTuple):
    """How many machines a run may have; `least` and `most` are the same unless it is elastic."""

    least: int
    most: int


class Address(NamedTuple):
    """Where the ranks of DeepSpeed's launcher meet; host None: its first machine's own word for it."""

    host: str | None
    port: int


class TorchrunOptions(NamedTuple):
    """What torchrun is asked for. `rendezvous`: HOST:PORT where machines meet, None on one machine."""

    ranks: int  # on this machine
    nodes: Nodes
    rendezvous: str | None
    max_restarts: int
    log_folder: Path


def parse_nodes(text: str) -> Nodes:
    """Of "2" or "1:4". Raises ConfigError with the fix."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    nodes = Nodes(int(match[1]), int(match[2] or match[1])) if match else Nodes(0, 0)
    if not 1 <= nodes.least <= nodes.most:
        raise ConfigError(f"--nnodes {text} is no number of machines; use one such as 2, or MIN:MAX such as 1:2")
    return nodes


def torchrun_command(options: TorchrunOptions, arguments: list[str]) -> list[str]:
    """The command for one machine; on several it is the same on each. Raises ConfigError."""
    words = [sys.executable, "-m", AGENT_MODULE]
    if options.nodes.most == 1:
        # torchrun would look up this machine's name, which hangs where that cannot be resolved
        words += ["--standalone", "--local-addr", "127.0.0.1"]
    else:
        words += _meeting(options)
    words += ["--nproc-per-node", str(options.ranks), "--max-restarts", str(options.max_restarts)]
    words += ["--log-dir", str(options.log_folder), "--redirects", "3", "--tee", "0:3"]
    return [*words, "--module", RANK_MODULE, *arguments]


def _meeting(options: TorchrunOptions) -> list[str]:
    """Where several machines meet."""
    least, most = options.nodes
    if options.rendezvous is None:
        raise ConfigError(
            f"--nnodes {least if least == most else f'{least}:{most}'} needs a place where the machines meet: "
            "--rendezvous HOST:PORT, HOST being one of them"
        )
    host, _, port = options.rendezvous.partition(":")
    words = ["--nnodes", str(most) if least == most else f"{least}:{most}", "--rdzv-backend", "c10d"]
    words += ["--rdzv-endpoint", f"{host}:{port or DEFAULT_PORT}", "--rdzv-id", "megagpt"]
    if host in ("localhost", "127.0.0.1"):  # all on this machine: its name need not be known
        words += ["--local-addr", "127.0.0.1"]
    return [*words, "--rdzv-conf", _ELASTIC_RENDEZVOUS] if least != most else words


def deepspeed_command(
    ranks: int, has_gpus: bool, hosts: Hosts | None, hostfile: Path | None, where: Address, arguments: list[str]
) -> list[str]:
    """DeepSpeed's launcher on this machine, or from it on those that `hostfile` lists (`hosts`)."""
    # not the script `deepspeed`: it does not start from a path with a blank
    words = [sys.executable, "-m", "deepspeed.launcher.runner"]
    if hosts is None:
        words += ["--num_gpus" if has_gpus else "--num_accelerators", str(ranks)]
    else:
        words += ["--hostfile", str(hostfile)]
        if hosts.only_this_machine:  # DeepSpeed would ask this machine its address over ssh
            words += ["--no_ssh_check", "--master_addr", "127.0.0.1"]
        else:  # a single machine that is not this one would be taken for this one
            words += ["--force_multi", *(["--master_addr", where.host] if where.host else [])]
    return [*words, "--master_port", str(where.port), "--module", RANK_MODULE, *arguments]
