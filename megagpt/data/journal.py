"""PREFIX.journal, the record of a build that is not finished: what it was asked to do and each shard that is committed.

In and out: records. A line holds a record and its hash; it is written after the data it speaks of is on the disk, so
what the whole lines say can be relied on after a crash at any moment. Knows nothing of how a dataset is built.
"""

import fcntl
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import xxhash

from megagpt.data.sidecar import Shard
from megagpt.errors import DataError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class InputState:
    """An input as it was listed; `mtime_ns` and `size_bytes` are None where it has none (standard input)."""

    path: str
    size_bytes: int | None
    mtime_ns: int | None


@dataclass(frozen=True)
class Share:
    """What this build takes of an input: positions [start, stop) (see sidecar.Shard); `stop` None is the end."""

    path: str
    start: int
    stop: int | None


@dataclass(frozen=True)
class Plan:
    """What a build was asked to do; everything that the resulting bytes depend on."""

    inputs: tuple[InputState, ...]
    shares: tuple[Share, ...]
    text_key: str
    on_error: str
    tokenizer_kind: str
    fingerprint: str
    vocab_size: int
    eod_id: int
    task: int
    num_tasks: int
    chunk_bytes: int
    long_line_bytes: int
    shard_bytes: int
    num_committed: int = 0  # shards recorded before this line that still count
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Part:
    """What a shard holds of one source: positions [start, stop), the hash of that input, and what it became."""

    source: int
    start: int
    stop: int
    input_hash: str
    damaged: bool  # what follows in this source cannot be read and was left out
    num_documents: int
    num_tokens: int
    text_bytes: int
    num_characters: int


@dataclass(frozen=True)
class Committed:
    """A shard whose bytes are on the disk, and where to go on after it."""

    shard: Shard
    parts: tuple[Part, ...]
    max_token_id: int
    lengths_hash: str  # of its part of the lengths file
    skipped: Mapping[str, int]  # reason -> documents left out
    first_skipped: Mapping[str, str]  # reason -> the first message, where it is the first of the build
    next_source: int
    next_position: int
    stored_bytes_read: int  # of the whole input, up to here
    last: bool  # it ends where the input ended, and would hold more if the input had grown


@dataclass(frozen=True)
class Finish:
    """All files are whole under their temporary names, and may be given their own. None: the file is not written."""

    bin_bytes: int | None
    idx_bytes: int | None
    json_bytes: int


class Record(NamedTuple):
    """What a journal says; `plan` is None where it is empty. The last plan counts."""

    plan: Plan | None
    committed: list[Committed]
    finish: Finish | None


class Journal:
    """The journal file, locked: it exists from a build's first moment to its last, so its lock is the build's."""

    def __init__(self, path: Path) -> None:
        """Open or make it. Raises DataError where another process holds it, or it cannot be written."""
        self.path = path
        self._file = _open_locked(path)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read(self) -> Record:
        """Everything recorded. The first line that is not whole, and all after it, are removed: they were being written
        when the build was stopped, and what they speak of is made again. Raises DataError where there is no first line.
        """
        with open(self.path, "rb") as stream:
            content = stream.read()
        bodies: list[Mapping[str, Any]] = []
        whole = 0
        for line in re.findall(rb"[^\n]*\n|[^\n]+", content):
            body = _checked(line)
            if body is None:
                break
            bodies.append(body)
            whole += len(line)
        if not bodies and content.count(b"\n") > 1:
            raise DataError(
                f"{self.path}:1 is damaged, so it is not known what was being built; start over with --restart"
            )
        if whole < len(content):
            os.ftruncate(self._file, whole)
        try:
            return _record(bodies, self.path)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} was written by another version of megagpt ({error}); finish the build with that one, or "
                "start over with --restart"
            ) from error

    def append(self, *records: Plan | Committed | Finish) -> None:
        """Write records and bring them to the disk. Raises OSError where the disk is full."""
        lines = b"".join(map(_line, records))
        while lines:
            lines = lines[os.write(self._file, lines) :]
        os.fdatasync(self._file)

    def clear(self) -> None:
        """Forget everything."""
        os.ftruncate(self._file, 0)

    def remove(self) -> None:
        """Remove the file; the lock lasts until the journal is closed."""
        self.path.unlink(missing_ok=True)


_NAMES: Mapping[type, str] = {Plan: "plan", Committed: "shard", Finish: "finish"}


def lock_exclusively(file: int) -> bool:
    """Take the lock of an open file; False where another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_locked(path: Path) -> int:
    target = path.with_suffix(".bin")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}; choose another output") from error
        try:
            locked = lock_exclusively(file)
        except OSError as error:
            os.close(file)
            raise DataError(
                f"{path} cannot be locked ({error.strerror}), so two builds of one output would not notice each other; "
                "choose an output on a file system with locks"
            ) from error
        if not locked:
            os.close(file)
            raise DataError(f"another process is writing {target} now; wait for it, or choose another output")
        if path.exists() and os.path.samestat(os.fstat(file), os.stat(path)):
            return file
        os.close(file)  # another build ended, and removed its journal, between our opening and locking it


def _line(record: Plan | Committed | Finish) -> bytes:
    body = json.dumps({_NAMES[type(record)]: record}, default=vars, separators=(",", ":"))
    return f'{{"hash":"{xxhash.xxh3_128_hexdigest(body.encode())}","record":{body}}}\n'.encode()


def _checked(line: bytes) -> Mapping[str, Any] | None:
    """The record in a line; None where the line is not whole."""
    try:
        row = json.loads(line)
        body = json.dumps(row["record"], separators=(",", ":"))
        whole = line.endswith(b"\n") and row["hash"] == xxhash.xxh3_128_hexdigest(body.encode())
        return row["record"] if whole else None
    except (ValueError, KeyError, TypeError):
        return None


def _record(bodies: list[Mapping[str, Any]], path: Path) -> Record:
    plan: Plan | None = None
    committed: list[Committed] = []
    finish: Finish | None = None
    for body in bodies:
        if "plan" in body:
            plan = _plan(body["plan"], path)
            del committed[plan.num_committed :]
        elif "shard" in body:
            committed.append(_committed(body["shard"]))
        else:
            finish = Finish(**body["finish"])
    return Record(plan, committed, finish)


def _plan(values: dict[str, Any], path: Path) -> Plan:
    if values["format_version"] != FORMAT_VERSION:
        raise KeyError(f"format version {values['format_version']}, not {FORMAT_VERSION}")
    inputs = tuple(InputState(**state) for state in values["inputs"])
    shares = tuple(Share(**share) for share in values["shares"])
    return Plan(**{**values, "inputs": inputs, "shares": shares})


def _committed(values: dict[str, Any]) -> Committed:
    parts = tuple(Part(**part) for part in values["parts"])
    return Committed(**{**values, "shard": Shard(**values["shard"]), "parts": parts})
