"""RUN/lock: one session at a time trains in a folder, for two would destroy each other's checkpoints.

Rank 0 holds an flock on the file during its session. The kernel lets go of it when the process ends, however it ends,
so that a killed session leaves nothing to clean up. Must not import anything heavy.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from megagpt.errors import ConfigError
from megagpt.training.run_environment import job_name, this_host
from megagpt.training.run_files import read_json, shown_time, utc_now

LOCK_FILE = "lock"
_TRIES, _TRY_SECONDS = 10, 0.1  # `megagpt runs` holds it for a moment when it looks
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """The lock of a run folder. Rank 0 alone takes it."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        """`warn` is told where the file system has no locks."""
        self._folder, self._warn = folder, warn
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take the lock unless it is held already, or the folder does not exist or may not be written.

        Raises ConfigError where another session holds it.
        """
        if self._file is not None or not self._folder.is_dir():
            return
        path = self._folder / LOCK_FILE
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError:
            return  # a run that has to write says so with its folder's name
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    self._warn(
                        f"warning: the file system of {self._folder} has no locks ({error.strerror}): nothing keeps a "
                        "second start from writing there too"
                    )
                    break
                if left:
                    time.sleep(_TRY_SECONDS)
                    continue
                file.close()
                raise ConfigError(_held(self._folder)) from None
        self._file = file
        try:
            file.truncate(0)
            file.write(json.dumps({"host": this_host(), "pid": os.getpid(), "job": job_name(), "since": utc_now()}))
            file.flush()
        except OSError:
            return  # a full disk: the lock holds all the same, without a name

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


def is_locked(folder: Path) -> bool | None:
    """Whether a session holds the lock of a run folder; None where that cannot be known."""
    try:
        file = (folder / LOCK_FILE).open("rb")
    except FileNotFoundError:
        return False
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return True if error.errno == errno.EWOULDBLOCK else None
    return False


def _held(folder: Path) -> str:
    """Who holds the lock, and what to do."""
    found: Any = read_json(folder / LOCK_FILE)
    values = found if isinstance(found, dict) else {}
    host, pid, since = values.get("host", "unknown"), values.get("pid", "unknown"), str(values.get("since", "unknown"))
    job = f", job {values['job']}" if values.get("job") else ""
    return (
        f"run.folder {folder} is being trained by another process: pid {pid} on {host}{job}, since "
        f"{shown_time(since)}. Two at once would destroy each other's checkpoints: wait for it, stop it "
        f"(on {host}: kill {pid}), or choose another run.folder"
    )
