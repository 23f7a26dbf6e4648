"""The part of a build that writes. In: encoded chunks, in order. Out: the bytes of .bin and the lengths, and a journal.

Chunks are appended as they come; when a shard is full a thread of its own brings it to the disk and then records it,
while the next shard is being written. Never reads a corpus.
"""

import os
import queue
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from megagpt.data.encoded import Encoded, SpooledIds
from megagpt.data.indexed import dataset_files
from megagpt.data.indexed_writer import LENGTH_BYTES
from megagpt.data.journal import Committed, Journal, Part, lock_exclusively
from megagpt.data.sidecar import Shard
from megagpt.errors import DataError

_COPY_BYTES = 1 << 20
_WAITING_SHARDS = 4


class BuildFiles(NamedTuple):
    """The files of a build that is not finished, all beside the dataset."""

    prefix: str
    bin: Path
    idx: Path
    json: Path
    lengths: Path  # int32, tokens of each document
    journal: Path
    spool: Path  # a folder of temporary files

    @property
    def targets(self) -> tuple[Path, Path, Path]:
        """The dataset: .bin, .idx and .json."""
        return dataset_files(self.prefix)


def build_files(prefix: str | Path) -> BuildFiles:
    """The files of a build of the dataset `prefix`."""
    base = str(dataset_files(prefix)[0]).removesuffix(".bin")
    partial = {kind: Path(f"{base}.{kind}.partial") for kind in ("bin", "idx", "json", "lengths", "spool")}
    return BuildFiles(prefix=base, journal=Path(f"{base}.journal"), **partial)


class Piece(NamedTuple):
    """An encoded chunk. `encoded` is None where the rest of the source is damaged and left out."""

    source: int
    start: int
    stop: int
    stored_bytes_read: int  # of the whole input, when this is done
    input_bytes: int
    input_hash: bytes  # 16 bytes
    encoded: Encoded | None
    skipped: Mapping[str, int]
    first_skipped: Mapping[str, str]


class Done(NamedTuple):
    """How far a build is."""

    num_documents: int
    num_tokens: int
    stored_bytes_read: int


def done_with(committed: Sequence[Committed]) -> Done:
    """How far a build is that has these shards."""
    return Done(
        sum(record.shard.num_documents for record in committed),
        sum(record.shard.num_tokens for record in committed),
        committed[-1].stored_bytes_read if committed else 0,
    )


class ShardWriter:
    """Appends to the files of a build; a context manager. `committed` are the shards that are safe, oldest first."""

    def __init__(
        self, files: BuildFiles, dtype: np.dtype, journal: Journal, committed: list[Committed], shard_bytes: int
    ) -> None:
        """Go on after `committed`; what the files hold beyond it is cut off. Raises DataError, OSError."""
        self.committed = committed
        self.first_skipped: dict[str, str] = {}
        for record in committed:
            self.first_skipped.update(record.first_skipped)
        self._dtype = dtype
        self._shard_bytes = shard_bytes
        self._num_documents, self._num_tokens, self._stored_bytes_read = done_with(committed)
        self._damaged_source: int | None = None
        self._shard = _OpenShard()
        self._bin = _open_at(files.bin, self._num_tokens * dtype.itemsize)
        self._lengths = _open_at(files.lengths, self._num_documents * LENGTH_BYTES)
        self._recorder = _Recorder(self._bin, self._lengths, journal, committed)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._recorder.end()
        os.close(self._bin)
        os.close(self._lengths)

    @property
    def done(self) -> Done:
        """How far the build is, with what is not committed yet."""
        return Done(self._num_documents, self._num_tokens, self._stored_bytes_read)

    def append(self, piece: Piece) -> None:
        """Write the next chunk. Raises OSError where the disk is full."""
        self._recorder.check()
        if piece.source == self._damaged_source:
            return  # read ahead, of a source whose rest is left out
        for reason, message in piece.first_skipped.items():
            if self.first_skipped.setdefault(reason, message) is message:
                self._shard.first_skipped[reason] = message
        self._shard.add(piece)
        self._stored_bytes_read = piece.stored_bytes_read
        if piece.encoded is None:
            self._damaged_source = piece.source
        else:
            self._write(piece.encoded)
        if self._shard.input_bytes >= self._shard_bytes:
            self._close_shard()

    def finish(self) -> None:
        """Close the last shard. It is committed when the context has ended, or `wait` has returned."""
        if self._shard.parts:
            self._close_shard(last=True)

    def wait(self) -> None:
        """Return when everything is committed. Raises what went wrong."""
        self._recorder.end()
        self._recorder.check()

    def _write(self, encoded: Encoded) -> None:
        lengths = encoded.lengths
        num_tokens = int(lengths.sum())
        shard = self._shard
        if isinstance(encoded.ids, SpooledIds):
            num_bytes = encoded.ids.num_bytes
            _copy(encoded.ids.path, num_bytes, self._bin, shard.hash)
        else:
            num_bytes = len(encoded.ids)
            shard.hash.update(encoded.ids)
            write_all(self._bin, encoded.ids)
        assert num_bytes == num_tokens * self._dtype.itemsize, (num_bytes, num_tokens, self._dtype)
        stored = lengths.astype("<i4").tobytes()
        shard.lengths_hash.update(stored)
        write_all(self._lengths, stored)
        shard.max_token_id = max(shard.max_token_id, encoded.max_token_id)
        self._num_documents += len(lengths)
        self._num_tokens += num_tokens

    def _close_shard(self, last: bool = False) -> None:
        next_source, next_position = self._shard.parts[-1].source, self._shard.parts[-1].stop
        if next_source == self._damaged_source:
            next_source, next_position = next_source + 1, 0
        self._recorder.record(self._shard.record(next_source, next_position, self._stored_bytes_read, last))
        self._shard = _OpenShard()


class _OpenPart:
    def __init__(self, source: int, start: int) -> None:
        self.source = source
        self.start = self.stop = start
        self.hashes = bytearray()  # of its chunks
        self.damaged = False
        self.num_documents = self.num_tokens = self.text_bytes = self.num_characters = 0

    def closed(self) -> Part:
        return Part(
            source=self.source,
            start=self.start,
            stop=self.stop,
            input_hash=xxhash.xxh3_128_hexdigest(self.hashes),
            damaged=self.damaged,
            num_documents=self.num_documents,
            num_tokens=self.num_tokens,
            text_bytes=self.text_bytes,
            num_characters=self.num_characters,
        )


class _OpenShard:
    """The shard being written."""

    def __init__(self) -> None:
        self.parts: list[_OpenPart] = []
        self.input_bytes = 0
        self.max_token_id = -1
        self.hash = xxhash.xxh3_128()
        self.lengths_hash = xxhash.xxh3_128()
        self.skipped: Counter[str] = Counter()
        self.first_skipped: dict[str, str] = {}

    def add(self, piece: Piece) -> None:
        if not self.parts or self.parts[-1].source != piece.source:
            self.parts.append(_OpenPart(piece.source, piece.start))
        part = self.parts[-1]
        part.stop = piece.stop
        part.hashes += piece.input_hash
        part.damaged = piece.encoded is None
        self.input_bytes += piece.input_bytes
        for reason, count in piece.skipped.items():
            self.skipped[reason] += count
        if piece.encoded is not None:
            part.num_documents += len(piece.encoded.lengths)
            part.num_tokens += int(piece.encoded.lengths.sum())
            part.text_bytes += piece.encoded.text_bytes
            part.num_characters += piece.encoded.num_characters

    def record(self, next_source: int, next_position: int, stored_bytes_read: int, last: bool) -> Committed:
        parts = tuple(part.closed() for part in self.parts)
        shard = Shard(
            first_source=parts[0].source,
            first_position=parts[0].start,
            last_source=parts[-1].source,
            last_position=parts[-1].stop,
            num_documents=sum(part.num_documents for part in parts),
            num_tokens=sum(part.num_tokens for part in parts),
            text_bytes=sum(part.text_bytes for part in parts),
            input_hash=xxhash.xxh3_128_hexdigest("".join(part.input_hash for part in parts).encode()),
            hash=self.hash.hexdigest(),
        )
        return Committed(
            shard=shard,
            parts=parts,
            max_token_id=self.max_token_id,
            lengths_hash=self.lengths_hash.hexdigest(),
            skipped=dict(self.skipped),
            first_skipped=self.first_skipped,
            next_source=next_source,
            next_position=next_position,
            stored_bytes_read=stored_bytes_read,
            last=last,
        )


class _Recorder:
    """A thread that brings data to the disk and then records the shards they are; errors come out of `check`.

    Shards that wait together are brought to the disk together; whoever writes faster than the disk takes it, waits.
    """

    def __init__(self, bin_file: int, lengths_file: int, journal: Journal, committed: list[Committed]) -> None:
        self._files = (bin_file, lengths_file)
        self._journal = journal
        self._committed = committed
        self._error: BaseException | None = None
        self._waiting: queue.Queue[Committed | None] = queue.Queue(_WAITING_SHARDS)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def record(self, shard: Committed) -> None:
        self._waiting.put(shard)

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Wait until all shards are recorded."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            waiting = [self._waiting.get()]
            while not self._waiting.empty():
                waiting.append(self._waiting.get())
            ended = None in waiting
            if self._error is None:
                try:
                    self._record([shard for shard in waiting if shard is not None])
                except BaseException as error:
                    self._error = error

    def _record(self, shards: list[Committed]) -> None:
        if not shards:
            return
        for file in self._files:
            os.fdatasync(file)
        self._journal.append(*shards)
        self._committed += shards


def write_all(file: int, data: bytes) -> None:
    """Write all of `data` to the open file."""
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, memoryview(data)[written:])


def _copy(path: Path, num_bytes: int, target: int, digest: xxhash.xxh3_128) -> None:
    """Append the temporary file `path` to `target`, and remove it."""
    copied = 0
    with open(path, "rb", buffering=0) as stream:
        while block := stream.read(_COPY_BYTES):
            digest.update(block)
            write_all(target, block)
            copied += len(block)
    assert copied == num_bytes, (path, copied, num_bytes)
    path.unlink()


def _open_at(path: Path, size: int) -> int:
    """The file, cut to `size` bytes, to be written at its end."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another output") from error
    if not lock_exclusively(file):
        os.close(file)
        raise DataError(f"another process is writing {path} now; wait for it, or choose another output")
    if os.fstat(file).st_size != size:
        os.ftruncate(file, size)
    return file
