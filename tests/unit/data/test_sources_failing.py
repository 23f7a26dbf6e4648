"""Disks and processes that fail while a corpus is read: the input, the byte and what to do are named."""

import errno
import gzip
import io
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megagpt.data.corpus import CorpusFile, corpus_files
from megagpt.data.sources import Sizes, line_of
from megagpt.data.sources_datasets import find_dataset
from megagpt.errors import DataError
from tests.unit.data.test_sources import read, write

LINES = b'{"text": "a"}\n' * 50_000
MESSAGE = r"^corpus file {} cannot be read at byte {} \(Input/output error\); check its disk or network, run again, or"


def broken(*_: object, **__: object) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("name", ["c.jsonl", "c.txt"])
def test_a_disk_that_fails_under_a_plain_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / name, LINES)
    found = read(file, tmp_path, sizes=Sizes(1 << 20))
    monkeypatch.setattr(os, "pread", broken)
    at = found[-1].start
    with pytest.raises(DataError, match=MESSAGE.format(file.path, at)):
        found[-1].load()
    with pytest.raises(DataError, match=MESSAGE.format(file.path, 0)):
        line_of(file, 100)
    if name == "c.jsonl":
        with pytest.raises(DataError, match=MESSAGE.format(file.path, 0)):
            read(file, tmp_path)


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst"])
def test_a_disk_that_fails_under_a_compressed_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = os.urandom(1_000_000).replace(b"\n", b"") + b"\n"
    packed = gzip.compress(lines) if name.endswith(".gz") else zstandard.ZstdCompressor().compress(lines)
    file = write(tmp_path / name, packed)

    class Failing(io.FileIO):
        def read(self, size: int | None = -1, /) -> Any:
            return broken() if self.tell() > 500_000 else super().read(-1 if size is None else size)

    monkeypatch.setattr(os, "fdopen", lambda descriptor, *_, **__: Failing(descriptor))
    with pytest.raises(DataError, match=MESSAGE.format(file.path, r"5\d{5}")):
        read(file, tmp_path, sizes=Sizes())
    with pytest.raises(DataError, match=MESSAGE.format(file.path, r"5\d{5}")):
        line_of(file, 900_000)


def test_standard_input_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            return broken() if self.tell() else super().read1(1000)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Failing(LINES)))
    with pytest.raises(DataError, match=r"^standard input cannot be read at byte 1000 \(Input/output error\); check"):
        read(CorpusFile("-", None), tmp_path)


def test_a_disk_that_fails_under_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    (file,) = corpus_files([str(path)])
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", broken)
    with pytest.raises(
        DataError, match=rf"^corpus file {path} cannot be read after row 0 \(Input/output error\); check"
    ):
        read(file, tmp_path)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"was killed \(SIGKILL\); where memory ran out, free some"),
        (
            "import os; print('half a'); print('line', flush=True); os._exit(7)",
            "ended with status 7 after saying 'line'",
        ),
        ("import os; os._exit(0)", "ended with status 0"),
        ("print('no dataset', flush=True); import os; os._exit(0)", "ended with status 0 after saying 'no dataset'"),
    ],
)
def test_a_process_that_ends_before_it_has_the_dataset(
    tmp_path: Path, package: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets.py").write_text(package)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=rf"^the process that loads hf:no/such {message}.*; what it wrote .* run again"):
        find_dataset("hf:no/such")


def test_a_package_datasets_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets.py").write_text("raise ValueError('numpy.dtype size changed\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DataError, match=r"^reading hf:no/such needs the package datasets, which fails \(ValueError: numpy.dtype size "
        r"changed\); install it again"
    ):  # fmt: skip
        find_dataset("hf:no/such")
