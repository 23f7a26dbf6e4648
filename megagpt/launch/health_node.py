"""What one node can say of itself before training: GPUs, folders, versions. In: what is wanted. Out: a NodeReport.

Knows nothing of other nodes. A check that does not return is named by `checked_within`.
"""

import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import megagpt
from megagpt.config_file import LoadedConfig, dump_toml
from megagpt.errors import MegagptError
from megagpt.launch.check import count_gpus
from megagpt.plan import RunPlan
from megagpt.training.run_folder import check_nvme_folder, check_run_folder

_PROBE_BYTES = 32 * 2**20
_MATRIX = 2048  # ones times ones: every element is 2048, which bfloat16 holds exactly
_MOST_USED_SHARE = 0.05  # of a GPU's memory, by others; the driver and a CUDA context take about 1 %
_NVIDIA_SMI_SECONDS = 30


class Wanted(NamedTuple):
    """What every node is checked against. `gpus`: how many it must have; 0: it trains on its CPUs."""

    loaded: LoadedConfig
    plan: RunPlan
    gpus: int


@dataclass
class NodeReport:
    """What a node found: `problems` keep it from training, `facts` are good to know. Filled check by check."""

    node: str
    problems: list[str]
    facts: list[str]
    version: str = ""
    config: str = ""


def checked_within(node: str, seconds: float, wanted: Wanted) -> NodeReport:
    """The report of this node; where a check has not returned after `seconds`, that is its last problem."""
    report = NodeReport(node, [], [])
    checks = {"versions": _check_versions, "GPUs": _check_gpus, "folders": _check_folders}
    running = [""]

    def run() -> None:
        for name, check in checks.items():
            running[0] = name
            _run_check(check, wanted, report)

    thread = threading.Thread(target=run, daemon=True)  # a driver that hangs cannot be interrupted
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        found = NodeReport(node, list(report.problems), list(report.facts), report.version, report.config)
        found.problems.append(f"its check of {running[0]} has not ended after {seconds:.0f} s")
        return found
    return report


def _run_check(check: Callable[[Wanted, NodeReport], None], wanted: Wanted, report: NodeReport) -> None:
    try:
        check(wanted, report)
    except MegagptError as error:
        report.problems.append(str(error))
    except OSError as error:
        report.problems.append(f"{error.filename or 'run.folder'}: {error.strerror}")
    except RuntimeError as error:  # CUDA's errors
        report.problems.append(str(error).splitlines()[0])
    except Exception as error:  # such as nvidia-smi that does not answer: a check that fails has not passed
        report.problems.append(f"{type(error).__name__}: {error}")


def _check_versions(wanted: Wanted, report: NodeReport) -> None:
    """Which megagpt and which configuration this node has; the nodes are compared later."""
    code = hashlib.sha256()
    root = Path(megagpt.__file__).parent
    for path in sorted(root.rglob("*.py")):
        code.update(path.read_bytes())
    report.version = f"megagpt {megagpt.__version__} ({code.hexdigest()[:8]})"
    report.config = hashlib.sha256(dump_toml(wanted.loaded.config).encode()).hexdigest()[:8]


def _check_gpus(wanted: Wanted, report: NodeReport) -> None:
    """As many GPUs as wanted, each of which multiplies, has its memory free, and counts no uncorrected errors."""
    import torch

    seen, listed = torch.cuda.device_count(), count_gpus()
    if seen < wanted.gpus:
        report.problems.append(f"torch sees {seen} GPUs, nvidia-smi {listed}; {wanted.gpus} are wanted")
        return
    report.problems += _ecc_problems() if listed else []
    for index in range(wanted.gpus):
        device = torch.device("cuda", index)
        free, total = torch.cuda.mem_get_info(device)
        if total - free > _MOST_USED_SHARE * total:
            report.problems.append(
                f"GPU {index}: {(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB are in use by another process"
            )
        ones = torch.ones(_MATRIX, _MATRIX, dtype=torch.bfloat16, device=device)
        if not bool((ones @ ones == _MATRIX).all()):
            report.problems.append(f"GPU {index} multiplies wrongly")
    if wanted.gpus:
        report.facts.append(f"{wanted.gpus} × {torch.cuda.get_device_name(0)}")
    else:
        report.facts.append(f"no GPU, {len(os.sched_getaffinity(0))} cores")


def _ecc_problems() -> list[str]:
    """GPUs with memory errors that ECC could not correct since the driver was loaded."""
    query = ["nvidia-smi", "--query-gpu=index,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=False).stdout
    problems = []
    for line in listed.splitlines():
        index, _, errors = line.partition(",")
        if errors.strip().isdecimal() and int(errors) > 0:  # "[N/A]" without ECC
            problems.append(f"GPU {index.strip()}: {errors.strip()} uncorrected memory errors (ECC)")
    return problems


def _check_folders(wanted: Wanted, report: NodeReport) -> None:
    """Folders of the run take and give back what is written, and have room."""
    _check_folder("run.folder", check_run_folder, wanted, report)
    if wanted.plan.layout.offload_parameters == "nvme":
        _check_folder("parallel.nvme_folder", check_nvme_folder, wanted, report)


def _check_folder(key: str, check: Callable[[LoadedConfig, RunPlan], None], wanted: Wanted, report: NodeReport) -> None:
    check(wanted.loaded, wanted.plan)  # rights and room; its error is this node's problem
    folder = Path(wanted.loaded.value(key))
    while not folder.exists():
        folder = folder.parent
    speed = _probe(folder / f".health-{report.node}")
    free = shutil.disk_usage(folder).free
    if speed is None:
        report.problems.append(f"{wanted.loaded.describe(key)} gives back other bytes than were written")
    else:
        report.facts.append(f"{key} {free / 2**30:,.0f} GiB free, writes {speed / 1e6:,.0f} MB/s")


def _probe(path: Path) -> float | None:
    """Bytes a second at which a file is written through to the disk; None where it reads back differently."""
    block = os.urandom(2**20)
    written, read = hashlib.sha256(), hashlib.sha256()
    try:
        start = time.monotonic()
        with path.open("wb") as file:
            for number in range(_PROBE_BYTES // len(block)):
                part = number.to_bytes(8, "little") + block[8:]
                file.write(part)
                written.update(part)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.monotonic() - start
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
            while part := file.read(2**20):
                read.update(part)
    finally:
        with suppress(OSError):
            path.unlink()
    return _PROBE_BYTES / seconds if read.digest() == written.digest() else None
