"""Indexes on disk: built once by whichever process comes first, then mapped by all. In: how to build one. Out: it.

A file holds 256 bytes of JSON (which dataset, which order, the hash of what follows) and then int64 numbers. Its name
ends in a hash of dataset and order, so an index of another dataset, split or seed is never taken for this one; a
damaged file is built again. It lies in the folder that was asked for, else beside the dataset, else, where that
cannot be written, in the user's cache. Knows nothing of what the numbers mean.
"""

import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from megagpt.data.index_order import ORDER_VERSION
from megagpt.errors import DataError

_FORMAT = "megagpt index 1"
_HEADER_BYTES = 256
_SMALL_BYTES = 1 << 16  # 130,000 documents, which are indexed in 3 ms: a file would take longer


class IndexUse(NamedTuple):
    """An index that was opened; `path` None: in memory."""

    name: str
    path: Path | None
    built: bool  # by this process; False: it was there
    seconds: float
    num_bytes: int


class IndexStore:
    """Where the indexes of one dataset are kept. Every process makes its own; they meet in the files."""

    def __init__(
        self,
        prefix: str | Path,
        content_hash: str,
        folder: str | None = None,
        keep_small: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`folder` None: beside the dataset, else the user's cache. `keep_small`: files for small indexes too.

        `say` is told what a person should know: that a file was damaged, or that no folder can be written.
        """
        self.uses: list[IndexUse] = []
        self._prefix, self._content_hash = Path(prefix), content_hash
        self._asked_for = Path(folder) if folder is not None else None
        self._keep_small, self._say = keep_small, say

    def load(self, name: str, order: str, size: int, build: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
        """The index `name` of `size` numbers, mapped from its file; `order` is all that it follows from.

        Where there is no file, the first process to come builds it and others wait for it (they lock a file beside
        it). A small index without a file is built in memory. Raises DataError where a file cannot be written.
        """
        started = time.perf_counter()
        header = {
            "format": _FORMAT,
            "order_version": ORDER_VERSION,
            "dataset": self._content_hash,
            "order": order,
            "size": size,
        }
        file_name = f"{self._prefix.name}.index-{name}-{xxhash.xxh3_64_hexdigest(json.dumps(header).encode())}"
        path, built = None, False
        found = self._find(file_name, header)
        if found is None and (self._keep_small or size * 8 >= _SMALL_BYTES):
            found, built = self._make_file(name, file_name, header, build)
        if found is not None:
            path, numbers = found
        else:
            numbers, built = build(), True
        self.uses.append(IndexUse(name, path, built, time.perf_counter() - started, size * 8))
        return numbers

    def _folders(self) -> list[Path]:
        """Where a file may lie, in the order of preference."""
        if self._asked_for is not None:
            return [self._asked_for]
        return [self._prefix.parent, *_cache_folders()]

    def _find(self, file_name: str, header: dict[str, object]) -> tuple[Path, NDArray[np.int64]] | None:
        for folder in self._folders():
            numbers = self._read(folder / file_name, header)
            if numbers is not None:
                return folder / file_name, numbers
        return None

    def _read(self, path: Path, header: dict[str, object]) -> NDArray[np.int64] | None:
        """The numbers of a file; None where there is none or it is damaged, which is said."""
        try:
            found = _read_header(path)
            if found is None:
                return None
            size = os.path.getsize(path)
            expected = _HEADER_BYTES + 8 * int(str(header["size"]))
            if {**found, "hash": None} == {**header, "hash": None} and size == expected:
                numbers = np.memmap(path, dtype="<i8", mode="r", offset=_HEADER_BYTES)
                if xxhash.xxh3_128_hexdigest(numbers.data) == found["hash"]:
                    return numbers
        except PermissionError:
            return None
        except (OSError, ValueError):
            pass
        self._say(f"index {path} is damaged, and is built again")
        return None

    def _make_file(
        self, name: str, file_name: str, header: dict[str, object], build: Callable[[], NDArray[np.int64]]
    ) -> tuple[tuple[Path, NDArray[np.int64]] | None, bool]:
        """Build the file in the first folder that can be written; (path and numbers or None, built by us)."""
        for folder in self._folders():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / file_name
                with _locked(folder / f"{file_name}.lock") as alone:
                    numbers = self._read(path, header) if path.exists() else None
                    if numbers is not None:
                        return (path, numbers), False
                    built = build()
                    _write(path, header, built)
                    self._remove_stale(folder, name)
                    if alone:  # what a builder that was killed has left
                        _remove(folder, f"{_escaped(file_name)}.*.building")
                    return (path, np.memmap(path, dtype="<i8", mode="r", offset=_HEADER_BYTES)), True
            except PermissionError:
                continue
            except OSError as error:
                if error.errno == errno.EROFS:
                    continue
                raise DataError(
                    f"index {folder / file_name} cannot be written: {error.strerror}; free space there, or name "
                    "another folder in data.index_folder"
                ) from None
        if self._asked_for is not None:
            raise DataError(
                f"data.index_folder = {self._asked_for} cannot be written by this user, and holds no index "
                f"{file_name}; give the rights, name another folder, or build the index first with `megagpt data index`"
            )
        self._say(
            f"no folder can be written for the index of {self._prefix}: every process keeps its own, "
            f"{int(str(header['size'])) * 8 / 2**20:.0f} MiB; name a folder in data.index_folder"
        )
        return None, False

    def _remove_stale(self, folder: Path, name: str) -> None:
        """Remove indexes of an earlier dataset of this prefix; a process that has one mapped keeps it."""
        for path in folder.glob(f"{_escaped(self._prefix.name)}.index-{name}-*"):
            try:
                header = None if path.suffix in (".lock", ".building") else _read_header(path)
                if header is not None and header.get("dataset") != self._content_hash:
                    path.unlink(missing_ok=True)
            except (OSError, ValueError):
                continue  # not ours to judge


def _cache_folders() -> list[Path]:
    """The user's cache folder for indexes; none where the user has no home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return [(Path(cache) if cache else Path.home() / ".cache") / "megagpt" / "index"]
    except RuntimeError:
        return []


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _read_header(path: Path) -> dict[str, object] | None:
    """The JSON at the beginning of a file; None where there is no file. Raises ValueError where it is none of ours."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(path)
    return header


def _write(path: Path, header: dict[str, object], numbers: NDArray[np.int64]) -> None:
    """Write the file under another name, then rename: other processes see all of it or nothing."""
    numbers = numbers.astype("<i8", copy=False)
    text = json.dumps({**header, "hash": xxhash.xxh3_128_hexdigest(numbers.data)}).encode()
    assert len(text) <= _HEADER_BYTES, text
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".building", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.ljust(_HEADER_BYTES))
            file.write(numbers.data)
        os.chmod(temporary, 0o644)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`, waiting for who has it; the lock ends with its holder, however that ends.

    False where the file system has no locks: then processes may build the same file, and each renames it whole.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        try:
            yield alone
        finally:
            path.unlink(missing_ok=True)
