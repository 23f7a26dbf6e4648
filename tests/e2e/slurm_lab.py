"""A real SLURM of two nodes on this machine, for tests: node1 and node2 in namespaces of their own, all on loopback.

Needs root, `unshare`, and Debian's packages slurmctld, slurmd, slurm-client and munge; `missing_for_slurm` says what is
not there. No systemd, no cgroups, and nothing of the system's own configuration is read or changed.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

_COMMANDS = (
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "scontrol",
    "squeue",
    "scancel",
    "sinfo",
    "munged",
    "unshare",
    "nsenter",
)
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_NODE = (
    'hostname "$1"; mount --bind "$2/hosts" /etc/hosts; exec slurmd -f "$2/slurm.conf" -N "$1"'  # $1 name, $2 folder
)
_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SwitchType=switch/none
ReturnToService=1
KillWait=10
SlurmdTimeout=6
MessageTimeout=10
MinJobAge=300
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
NodeName=node1 NodeHostname=node1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=node2 NodeHostname=node2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=node1,node2 Default=YES State=UP
"""


def missing_for_slurm() -> str | None:
    """Why no SLURM can be started here, or None."""
    missing = [command for command in _COMMANDS if shutil.which(command, path=_PATH) is None]
    if missing:
        return f"a real SLURM needs {', '.join(missing)}"
    if os.getuid() != 0:
        return "a real SLURM of two nodes on one machine needs root"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, check=False).returncode:
        return "a real SLURM of two nodes on one machine needs namespaces, which this one does not allow"
    return None


class SlurmLab:
    """Starts in the constructor; `stop` ends jobs and daemons. `folder` is empty, and readable for all (munge)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            "PATH": _PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        host = socket.gethostname().split(".")[0]
        (folder / "slurm.conf").write_text(_CONF.format(folder=folder, host=host, ports=_free_ports(3)))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (folder / "hosts").write_text(f"127.0.0.1 localhost {host}\n127.0.0.1 node1\n127.0.0.1 node2\n")
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        (folder / "state").mkdir()
        try:
            self._munge()
            self.run("slurmctld", "-f", str(folder / "slurm.conf"))
            for name in ("node1", "node2"):
                self.start_node(name)
            self._wait("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", words=["node1", "node2"])
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Output of a command that succeeds; daemons go on after it."""
        output = self.folder / "output"  # a file: a daemon keeps a pipe open
        with output.open("w") as stream:
            status = subprocess.run(
                command, cwd=cwd, env=self.environment, stdout=stream, stderr=stream, timeout=60, check=False
            ).returncode
        assert status == 0, (command, output.read_text())
        return output.read_text()

    def enter(self, node: str, *command: str) -> str:
        """Output of a command that succeeds in a node's own view of the file system."""
        return self.run("nsenter", "--mount", "--target", str(self._pid(node)), *command)

    def crash(self, node: str) -> None:
        """A power loss: kill -9 of the node's daemon and everything below it."""
        log = f"{self.folder}/slurmd-{node}.log"
        steps = [pid for pid in _pids() if _command(pid) == "slurmstepd" and log in _open_files(pid)]
        victims = [self._pid(node), *(pid for step in steps for pid in process_tree(step))]
        (self.folder / f"slurmd-{node}.pid").unlink()
        for pid in victims:
            _signal(pid, signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Start a node's daemon, as when its power is back."""
        self.run("unshare", "--uts", "--mount", "bash", "-c", _NODE, "-", node, str(self.folder))

    def _pid(self, node: str) -> int:
        return int((self.folder / f"slurmd-{node}.pid").read_text())

    def wait_for_job(self, job: str) -> None:
        """Until the job has left the queue."""
        self._wait("squeue", "-h", "-j", job, "-t", "PD,R,CG", "-o", "%i", words=[])

    def stop(self) -> None:
        """Ends every job and then the daemons."""
        subprocess.run(["scancel", "-u", "root"], env=self.environment, capture_output=True, timeout=60, check=False)
        pids = [int(path.read_text()) for path in self.folder.glob("*.pid")]
        for pid in pids:
            _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while any(map(_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in pids:
            _signal(pid, signal.SIGKILL)

    def _munge(self) -> None:
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        files["seed-file"] = "munged.seed"
        self.run("munged", "--num-threads=2", *(f"--{name}={self.folder / file}" for name, file in files.items()))

    def _wait(self, *command: str, words: list[str]) -> None:
        deadline = time.monotonic() + 120
        while sorted(self.run(*command).split()) != words:
            assert time.monotonic() < deadline, (command, self.run("sinfo", "-Nl"), self.run("squeue"))
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _open_files(pid: int) -> set[str]:
    try:
        return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return set()


def process_tree(pid: int) -> list[int]:
    """A process and all below it."""
    below: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below += [int(word) for word in path.read_text().split()]
        except OSError:
            continue
    return [pid, *(found for child in below for found in process_tree(child))]


def _signal(pid: int, number: int) -> None:
    if _alive(pid):
        os.kill(pid, number)


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
