"""The files of an export as they are written: into a folder, or only counted in a rehearsal. In: bytes and tensors."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class OutFile(Protocol):
    """A new file, written from its start to its end."""

    def write(self, data: bytes) -> None:
        """Append bytes."""

    def write_tensor(self, value: Tensor) -> None:
        """Append the values of a contiguous tensor on the CPU as they lie in memory."""


class Files(ABC):
    """Where the files of one export go."""

    @abstractmethod
    def open(self, name: str) -> Any:
        """A context with a new `OutFile`, in a folder of its own where the name has one."""

    def write_text(self, name: str, text: str) -> None:
        """A whole file in UTF-8."""
        with self.open(name) as file:
            file.write(text.encode("utf-8"))

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """A whole file."""
        self.write_text(name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


class FolderFiles(Files):
    """Files on the disk, flushed when they are closed. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def open(self, name: str) -> Iterator[OutFile]:
        """A new file; one that exists is replaced."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            yield _DiskFile(file)
            os.fsync(file.fileno())


class CountedFiles(Files):
    """No files: their names and sizes alone. Takes tensors without memory, too."""

    def __init__(self) -> None:
        self.num_bytes: dict[str, int] = {}

    @contextmanager
    def open(self, name: str) -> Iterator[OutFile]:
        """Begins to count."""
        file = _CountedFile()
        yield file
        self.num_bytes[name] = file.num_bytes


class _DiskFile:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def write_tensor(self, value: Tensor) -> None:
        assert value.is_contiguous(), value.shape
        if value.numel():
            self.write(memoryview(value.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]


class _CountedFile:
    def __init__(self) -> None:
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        self.num_bytes += len(data)

    def write_tensor(self, value: Tensor) -> None:
        assert value.is_contiguous(), value.shape
        self.num_bytes += value.nbytes
