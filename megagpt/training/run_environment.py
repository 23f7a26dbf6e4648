"""environment.json of a run folder: versions, machines, commit and command line of the last session. No secrets.

In: what this process can see, and the places of all ranks. Out: a plain dictionary. Must not import anything heavy.
"""

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megagpt import __version__
from megagpt.training.run_files import utc_now

ENVIRONMENT_FILE = "environment.json"
PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "sentencepiece", "tokenizers", "safetensors", "triton")
# the only variables that are written down: none of them can be a secret
VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST", "TORCHELASTIC_RUN_ID"),
    *("TORCHELASTIC_RESTART_COUNT", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_MAX_CONNECTIONS", "OMP_NUM_THREADS"),
    *("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
)
_GIT_SECONDS = 10.0
_PACKAGE = Path(__file__).resolve().parent.parent


class Commit(NamedTuple):
    """A commit of megagpt's repository."""

    name: str
    dirty: bool  # tracked files differ from it

    def describe(self) -> str:
        """`603294b…`, with `-dirty` where files differ."""
        return self.name + ("-dirty" if self.dirty else "")


class RankPlace(NamedTuple):
    """Where a rank runs."""

    host: str
    device: str


def this_host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def job_name() -> str | None:
    """The scheduler's name for what runs here, or None."""
    slurm = os.environ.get("SLURM_JOB_ID")
    return f"slurm {slurm}" if slurm else None


def repository_commit(package: Path = _PACKAGE) -> Commit | None:
    """The commit that megagpt runs from; None where it is installed without its repository, or git is missing."""
    root = package.parent
    if not (root / ".git").exists():
        return None
    name = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if name is None or changes is None else Commit(name, bool(changes))


def describe_environment(places: Sequence[RankPlace], cuda: str | None, commit: Commit | None) -> dict[str, Any]:
    """All of environment.json. `places`: of every rank, in their order; `cuda`: the version torch was built for."""
    hosts: dict[str, dict[str, Any]] = {}
    for rank, place in enumerate(places):
        hosts.setdefault(place.host, {"ranks": [], "devices": []})["ranks"].append(rank)
        if place.device not in hosts[place.host]["devices"]:
            hosts[place.host]["devices"].append(place.device)
    return {
        "time": utc_now(),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "folder": os.getcwd(),
        "megagpt": __version__,
        "commit": commit.name if commit else None,
        "dirty": commit.dirty if commit else None,
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "cuda": cuda,
        "system": platform.platform(),
        "hosts": hosts,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
