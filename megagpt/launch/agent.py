"""`python -m megagpt.launch.agent [--report FOLDER] TORCHRUN_ARGUMENTS...`: torchrun on one node, and what it lacks.

torchrun ends with 1 whatever its ranks ended with, dies of SIGUSR1, and kills ranks that save for longer than 30 s
after a signal. Here the ranks' exit status is passed on and written into FOLDER; SIGUSR1 and the first SIGTERM go to
the ranks, and the agent waits for them. Knows nothing of SLURM or of training.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from megagpt.durable import write_whole
from megagpt.launch.rank import AGENT_VARIABLE
from megagpt.launch.restarts import NO_RESTART, no_restart_signal, status_of_ranks
from megagpt.training.exit_status import RESTART

_SAVE_SECONDS = 300  # for ranks to save, where torchrun stops them as a node joins; torch's own 30 s otherwise


class RankEnd(NamedTuple):
    """How one rank of this node ended; a negative status is the signal that killed it."""

    rank: int
    status: int


class NodeReport(NamedTuple):
    """The ranks of a node that failed."""

    node: str
    ends: tuple[RankEnd, ...]


def main(argv: list[str]) -> int:
    """Run torchrun; 0 where all ranks of this node ended well, else what `status_of_ranks` says of them."""
    folder = None
    if argv[:1] == ["--report"]:
        folder, argv = Path(argv[1]), argv[2:]

    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    known = run.get_args_parser().format_help()
    options = [("--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT")]  # not SIGTERM
    if "--nnodes" in argv and ":" in argv[argv.index("--nnodes") + 1]:
        options.append(("--shutdown-timeout", str(_SAVE_SECONDS)))
    # torch 2.13 has both options; where they lack, ranks have 30 s after SIGTERM
    argv = [*(word for option in options if option[0] in known for word in option), *argv]
    os.environ.setdefault("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "[${rank}] ")  # torchrun's own: "[default0]:"
    # ranks that start again must not find the addresses of the dead ones (pytorch issue 135712)
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    signal.signal(signal.SIGUSR1, _pass_on)
    signal.signal(signal.SIGTERM, _pass_on)
    os.environ[AGENT_VARIABLE] = str(os.getpid())
    for status in NO_RESTART:
        signal.signal(no_restart_signal(status), _end_without_restart)
    try:
        run.main(argv)
    except ChildFailedError as error:
        ends = tuple(RankEnd(rank, failure.exitcode) for rank, failure in sorted(error.failures.items()))
        if folder is not None:
            write_report(folder, NodeReport(this_node(), ends))
        print(error, file=sys.stderr)
        return status_of_ranks(end.status for end in ends)
    except (RendezvousError, DistError) as error:
        print(f"lost the agents of other nodes: {str(error).splitlines()[0]}", file=sys.stderr)
        return RESTART
    except SignalException as error:
        print(f"stopped by {error.sigval.name}", file=sys.stderr)
        return RESTART
    return 0


def this_node() -> str:
    """The name by which SLURM, or this machine itself, calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def write_report(folder: Path, report: NodeReport) -> None:
    """FOLDER/NODE.json, all of it or nothing."""
    write_whole(folder / f"{report.node}.json", json.dumps({"node": report.node, "ends": report.ends}) + "\n")


def read_reports(folder: Path) -> list[NodeReport]:
    """What the nodes' agents wrote, sorted by node."""
    reports = []
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        reports.append(NodeReport(report["node"], tuple(RankEnd(*end) for end in report["ends"])))
    return reports


def _pass_on(number: int, _frame: FrameType | None) -> None:
    """Hand a signal to the ranks. SIGTERM once: at the second one torchrun ends them and itself."""
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, _stop)
    for pid in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _end_without_restart(number: int, _frame: FrameType | None) -> None:
    """A rank ends with a status that a restart does not change: torchrun ends the others and itself."""
    status = number - no_restart_signal(0)
    print(f"a rank ended with status {status}: {NO_RESTART[status]}", file=sys.stderr)
    raise SystemExit(status)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(RESTART)


def _children() -> Iterable[int]:
    """The processes that this one started; torchrun starts its ranks and nothing else."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                yield int(path.parent.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
