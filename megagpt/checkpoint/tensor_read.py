"""Fills tensors with elements of a safetensors file by large reads of the parts that hold them, or of all of it.

safetensors says where a file's tensors lie; its own reading maps the file, which fetches what the machine's read-ahead
setting makes of it and faults page by page. Here one thread reads the next parts while another hashes and copies the
last. In: a path, what to fill, the file's record if its hash is to be checked. Knows nothing of checkpoints.
"""

import errno
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megagpt.checkpoint.file_record import USE_ANOTHER, FileRecord, check_file, reading
from megagpt.checkpoint.pieces import Copy
from megagpt.errors import DamagedCheckpointError

_PART_BYTES = 8 << 20
_NUM_PARTS = 3  # in memory at once: one is copied from, two are being read
_GAP_BYTES = 1 << 20  # to read so much that is not wanted costs less than another read
_VALUE_BYTES = 4
_NUM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class Fill(NamedTuple):
    """Elements of one tensor of a file, and what they are copied to."""

    key: str
    num_elements: int  # of the tensor, which is flat and float32
    copy: Copy
    target: Tensor


def read_tensors(path: Path, fills: list[Fill], record: FileRecord, verify: bool) -> None:
    """Fill the targets in place. `verify`: read the whole file and compare its hash.

    Raises DamagedCheckpointError where the file is not as its record says, or holds other tensors than wanted.
    """
    check_file(path.parent, path.name, record, verify_hash=False)
    try:
        starts = _tensor_starts(path, fills)
    except DamagedCheckpointError:
        check_file(path.parent, path.name, record, verify)  # says that the file is not as it was written
        raise
    waiting = deque(sorted((_place(starts[fill.key], fill) for fill in fills), key=lambda placed: placed.start))
    extents = [(0, record.num_bytes)] if verify else _join([(placed.start, placed.stop) for placed in waiting])
    digest = record.new_digest()
    active: list[_Placed] = []
    for part in _parts(path, extents, is_pinned=any(fill.target.is_cuda for fill in fills)):
        while waiting and waiting[0].start < part.stop:
            active.append(waiting.popleft())
        for placed in active:
            first = (part.start - placed.tensor_start) // _VALUE_BYTES
            for copy in placed.fill.copy.within(first, first + len(part.values)):
                copy.run(part.values, placed.fill.target)
        active = [placed for placed in active if placed.stop > part.stop]
        if verify:
            digest.update(part.content)
    if verify and not record.agrees(digest):
        raise DamagedCheckpointError(f"{path} is damaged: its hash differs from its manifest's; {USE_ANOTHER}")


def _tensor_starts(path: Path, fills: list[Fill]) -> dict[str, int]:
    """The byte at which each wanted tensor starts."""
    wanted = {fill.key: fill.num_elements for fill in fills}
    starts = {}
    try:
        with reading(path), path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        with safe_open(path, "pt") as tensors:  # type: ignore[no-untyped-call]
            for key in tensors.offset_keys():
                view = tensors.get_slice(key)
                shape, dtype = tuple(view.get_shape()), view.get_dtype()
                if key in wanted:
                    _check_tensor(path, key, shape, dtype, wanted[key])
                    starts[key] = start
                    assert start % _VALUE_BYTES == 0, (path, key, start)  # safetensors pads its header
                start += prod(shape) * _NUM_BYTES[dtype]
    except (SafetensorError, KeyError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}; {USE_ANOTHER}") from None
    missing = sorted(wanted.keys() - starts.keys())
    if missing:
        raise DamagedCheckpointError(f"{path} is damaged: it does not contain {missing[0]}; {USE_ANOTHER}")
    return starts


def _check_tensor(path: Path, key: str, shape: tuple[int, ...], dtype: str, num_elements: int) -> None:
    if shape != (num_elements,) or dtype != "F32":
        raise DamagedCheckpointError(
            f"{key} in {path} has shape {shape} and {dtype}, the index says {(num_elements,)} and F32; {USE_ANOTHER}"
        )


class _Placed(NamedTuple):
    """A fill, and the bytes of the file that it wants."""

    start: int
    stop: int
    tensor_start: int
    fill: Fill


def _place(tensor_start: int, fill: Fill) -> _Placed:
    first, stride = fill.copy.source
    last = first + (fill.copy.num_rows - 1) * stride + fill.copy.num_columns
    return _Placed(tensor_start + first * _VALUE_BYTES, tensor_start + last * _VALUE_BYTES, tensor_start, fill)


def _join(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ordered extents with small gaps between them as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in extents:
        if joined and start <= joined[-1][1] + _GAP_BYTES:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


class _Part(NamedTuple):
    """Bytes of the file in memory, of use until the next part."""

    start: int  # in the file
    num_bytes: int
    memory: Tensor

    @property
    def stop(self) -> int:
        return self.start + self.num_bytes

    @property
    def values(self) -> Tensor:
        return self.memory[: self.num_bytes // _VALUE_BYTES]

    @property
    def content(self) -> memoryview:
        return memoryview(self.memory.numpy()).cast("B")[: self.num_bytes]  # type: ignore[arg-type]


def _parts(path: Path, extents: list[tuple[int, int]], is_pinned: bool) -> Iterator[_Part]:
    """Every part of the extents, in order."""
    spans = deque(
        (start, min(start + _PART_BYTES, stop)) for first, stop in extents for start in range(first, stop, _PART_BYTES)
    )
    free = [torch.empty(_PART_BYTES // _VALUE_BYTES, pin_memory=is_pinned) for _ in range(min(_NUM_PARTS, len(spans)))]
    coming: deque[tuple[_Part, Future[None]]] = deque()
    with reading(path), path.open("rb", buffering=0) as file, ThreadPoolExecutor(max_workers=1) as thread:
        _advise(file.fileno(), is_all=len(extents) == 1)
        while spans or coming:
            while spans and free:
                start, stop = spans.popleft()
                part = _Part(start, stop - start, free.pop())
                coming.append((part, thread.submit(_read, file.fileno(), part)))
            part, read = coming.popleft()
            read.result()
            yield part
            free.append(part.memory)


def _read(file: int, part: _Part) -> None:
    left, position = part.content, part.start
    while left:
        num_bytes = os.preadv(file, [left], position)
        if num_bytes == 0:
            raise OSError(errno.EIO, f"it ends at byte {position}")
        left, position = left[num_bytes:], position + num_bytes


def _advise(file: int, is_all: bool) -> None:
    """Read ahead far, or not at all."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL if is_all else os.POSIX_FADV_RANDOM)
