"""DeepSpeed's hostfile: which machines, and how many ranks on each. In: its path. Out: Hosts, or why it cannot work."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from megagpt.errors import ConfigError

_LINE = re.compile(r"\s*([^#\s]\S*)\s.*slots=(\d+)")
_SUCH_AS = "it has a line for each machine, such as: worker-1 slots=8"


class Hosts(NamedTuple):
    """The machines of a hostfile; `ranks` over all, `most_ranks` on the largest."""

    names: tuple[str, ...]
    ranks: int
    most_ranks: int

    @property
    def only_this_machine(self) -> bool:
        """Whether the file names this machine by its loopback name and no other."""
        return self.names in (("localhost",), ("127.0.0.1",))


def read_hostfile(path: Path) -> Hosts:
    """The machines of a hostfile. Raises ConfigError where it names none, or where they could not be reached."""
    if not path.is_file():
        raise ConfigError(f"--hostfile {path} is not a file; {_SUCH_AS}")
    found = [match for line in path.read_text(encoding="utf-8").splitlines() if (match := _LINE.match(line))]
    if not found:
        raise ConfigError(f"--hostfile {path} names no machine; {_SUCH_AS}")
    slots = [int(match[2]) for match in found]
    hosts = Hosts(tuple(match[1] for match in found), sum(slots), max(slots))
    if not hosts.only_this_machine and shutil.which("pdsh") is None:
        raise ConfigError(
            "DeepSpeed starts other machines with pdsh, which is not installed here; install it (Debian, Ubuntu: apt "
            "install pdsh), or use megagpt launch torchrun on each machine"
        )
    return hosts
