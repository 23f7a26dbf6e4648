"""Writes tensors as a safetensors file in one pass: a thread hashes and writes each part while the next is copied.

    8 bytes     length of the header, little-endian
    header      JSON: {name: {"dtype": "F32", "shape": [n], "data_offsets": [start, stop]}, ...}, padded with spaces
    data        the tensors one after the other, as they lie in memory

Source: https://huggingface.co/docs/safetensors (format). The bytes go past the page cache where the file system can do
that (O_DIRECT): faster, and it leaves the machine's memory to others. In: flat float32 tensors on any device. Out: the
file on the disk, its size and its hash. Knows nothing of checkpoints.
"""

import errno
import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import torch
from torch import Tensor

from megagpt.checkpoint.file_record import FileRecord, new_digest

_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux
_BLOCK_BYTES = 4096  # O_DIRECT wants offsets, lengths and addresses that are multiples of it
_PART_BYTES = 8 << 20
_NUM_PARTS = 4  # in memory at once
_VALUE_BYTES = 4


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileRecord:
    """Write flat float32 tensors by name and bring them to the disk. Raises OSError or RuntimeError."""
    header = _header(tensors)
    num_bytes = header.nbytes + sum(tensor.nbytes for tensor in tensors.values())
    free: SimpleQueue[_Part] = SimpleQueue()
    is_pinned = any(tensor.is_cuda for tensor in tensors.values())
    for _ in range(min(_NUM_PARTS, -(-num_bytes // _PART_BYTES))):
        free.put(_Part(is_pinned))
    with _OutputFile(path) as file:
        writer = _Writer(file, free)
        try:
            part = free.get()
            for tensor in (header, *tensors.values()):
                taken = 0
                while taken < tensor.numel():
                    taken += part.take(tensor[taken:])
                    if part.is_full:
                        writer.put(part)
                        part = free.get()
            writer.put(part)
        finally:
            writer.stop()  # before the file is closed
        writer.check()
        file.finish(num_bytes)
    return FileRecord.of(num_bytes, writer.digest)


def _header(tensors: dict[str, Tensor]) -> Tensor:
    """Length and header as a tensor of whole blocks, so that the data begins with a block."""
    entries, start = {}, 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, (name, tensor.dtype)
        assert tensor.dim() == 1, (name, tensor.shape)
        entries[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    length = _in_blocks(8 + len(text)) - 8
    return torch.frombuffer(bytearray(length.to_bytes(8, "little") + text.ljust(length)), dtype=torch.float32)


def _in_blocks(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


class _Part:
    """A part of the file in memory, at the start of a block."""

    def __init__(self, is_pinned: bool) -> None:
        memory = torch.zeros((_PART_BYTES + _BLOCK_BYTES) // _VALUE_BYTES, pin_memory=is_pinned)
        first = -memory.data_ptr() % _BLOCK_BYTES // _VALUE_BYTES
        self._values = memory[first : first + _PART_BYTES // _VALUE_BYTES]
        self._bytes = memoryview(self._values.numpy()).cast("B")  # type: ignore[arg-type]
        self._num_values = 0

    @property
    def is_full(self) -> bool:
        """Nothing more can be taken."""
        return self._num_values == self._values.numel()

    @property
    def content(self) -> memoryview:
        """The bytes taken."""
        return self._bytes[: self._num_values * _VALUE_BYTES]

    @property
    def blocks(self) -> memoryview:
        """The bytes taken, and after them what fills the last block."""
        return self._bytes[: _in_blocks(self._num_values * _VALUE_BYTES)]

    def take(self, values: Tensor) -> int:
        """Copy as many of the values as there is room for; returns how many."""
        room = self._values[self._num_values : self._num_values + values.numel()]
        room.copy_(values[: room.numel()])
        self._num_values += room.numel()
        return room.numel()

    def clear(self) -> None:
        """There is room for as much again."""
        self._num_values = 0


class _Writer:
    """The thread that hashes and writes parts, in the order in which they come. After a failure it only frees them."""

    def __init__(self, file: "_OutputFile", free: SimpleQueue[_Part]) -> None:
        self.digest = new_digest()
        self._file, self._free = file, free
        self._parts: SimpleQueue[_Part | None] = SimpleQueue()
        self._failure: Exception | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, part: _Part) -> None:
        """The next part; it is put into `free` once it is written."""
        self._parts.put(part)

    def stop(self) -> None:
        """Wait until every part is done."""
        self._parts.put(None)
        self._thread.join()

    def check(self) -> None:
        """Raise what went wrong."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (part := self._parts.get()) is not None:
            try:
                if self._failure is None:
                    self.digest.update(part.content)
                    self._file.write(part)
            except Exception as failure:
                self._failure = failure
            part.clear()
            self._free.put(part)


class _OutputFile:
    """A new file, written in blocks from its start."""

    def __init__(self, path: Path) -> None:
        self._flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._path = path

    def __enter__(self) -> "_OutputFile":
        try:
            self._file = os.open(self._path, self._flags | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            with suppress(FileNotFoundError):  # Linux makes the file before it refuses
                self._path.unlink()
            self._file = os.open(self._path, self._flags, 0o666)
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def write(self, part: _Part) -> None:
        """Append a part and what fills its last block."""
        left = part.blocks
        while left:
            try:
                left = left[os.write(self._file, left) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                fcntl.fcntl(self._file, fcntl.F_SETFL, 0)  # its blocks are larger than ours, or it was cut short

    def finish(self, num_bytes: int) -> None:
        """Cut off what filled the last block, and bring all to the disk."""
        os.ftruncate(self._file, num_bytes)
        os.fsync(self._file)

    @property
    def _is_direct(self) -> bool:
        return bool(fcntl.fcntl(self._file, fcntl.F_GETFL) & _DIRECT)
