"""Size and hash of a checkpoint's files, by which a run knows that they are as they were written.

The hash is xxh3_128: it finds any accident and costs little beside the disk, where SHA-256 would be what a save or load
waits for. It does not tell who wrote a file. In: paths. Out: records, or errors that name the file.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import xxhash

from megagpt.errors import CheckpointError, DamagedCheckpointError

USE_ANOTHER = "use another checkpoint"
_CHUNK_BYTES = 1 << 22


class Digest(Protocol):
    """A hash under way."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The hash of all of them."""


_ALGORITHM = "xxh3_128"
_DIGESTS: dict[str, Callable[[], Digest]] = {
    _ALGORITHM: xxhash.xxh3_128,
    "sha256": hashlib.sha256,  # of earlier checkpoints
}


@dataclass(frozen=True)
class FileRecord:
    """Size and hash by which a file is known to be whole."""

    num_bytes: int
    hash: str  # the algorithm's name, a colon, and hex digits

    @classmethod
    def of(cls, num_bytes: int, digest: Digest) -> "FileRecord":
        """The record of so many bytes, all of which a `new_digest()` has seen."""
        return cls(num_bytes, f"{_ALGORITHM}:{digest.hexdigest()}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FileRecord":
        """From a manifest. Raises KeyError, TypeError or ValueError."""
        record = cls(values["num_bytes"], f"sha256:{values['sha256']}" if "sha256" in values else values["hash"])
        if record.hash.partition(":")[0] not in _DIGESTS:
            raise ValueError(f"{record.hash!r} is no hash that this megagpt knows ({', '.join(_DIGESTS)})")
        return record

    def new_digest(self) -> Digest:
        """A hash of this one's algorithm, of nothing yet."""
        return _DIGESTS[self.hash.partition(":")[0]]()

    def agrees(self, digest: Digest) -> bool:
        """Whether a `new_digest()` of this record, which has seen a file, is this hash."""
        return digest.hexdigest() == self.hash.partition(":")[2]


def new_digest() -> Digest:
    """The hash of a new file, of nothing yet."""
    return _DIGESTS[_ALGORITHM]()


def file_record(path: Path) -> FileRecord:
    """Size and hash of a file, read once."""
    return FileRecord.of(path.stat().st_size, _hash_file(new_digest(), path))


def _hash_file(digest: Digest, path: Path) -> Digest:
    part = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(part):
            digest.update(part[:num_bytes])
    return digest


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within, a file that cannot be read is damage; one that this user may not read is a CheckpointError alone."""
    try:
        yield
    except PermissionError as error:
        raise CheckpointError(f"{error.filename or path} may not be read by this user; give it the rights") from None
    except OSError as error:
        where, why = error.filename or path, error.strerror or error
        raise DamagedCheckpointError(f"{where} cannot be read ({why}); {USE_ANOTHER}") from None


def check_file(folder: Path, name: str, record: FileRecord, verify_hash: bool) -> None:
    """Raise DamagedCheckpointError unless the file is there, has its size and, if asked, its hash."""
    path = folder / name
    with reading(path):
        if not path.exists():
            raise DamagedCheckpointError(f"{path} is missing; the checkpoint is not whole, use another one")
        size = path.stat().st_size
        if size != record.num_bytes:
            raise DamagedCheckpointError(
                f"{path} has {size} bytes, its manifest says {record.num_bytes}; {USE_ANOTHER}"
            )
        is_wrong = verify_hash and not record.agrees(_hash_file(record.new_digest(), path))
    if is_wrong:
        raise DamagedCheckpointError(f"{path} is damaged: its hash differs from its manifest's; {USE_ANOTHER}")
