"""Chunks of compressed JSONL and of standard input: those of the same content in a plain file, and every damage."""

import gzip
import io
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megagpt.data.corpus import CorpusFile, corpus_files
from megagpt.data.sources import Chunk, DamagedFile, JsonLines, LongLine, Sizes, chunks, line_of, place_of
from megagpt.data.sources_decompress import PIECE_BYTES, DamagedStream, gzip_pieces, zstd_pieces
from megagpt.errors import DataError
from tests.unit.data.test_sources import SMALL, bytes_of, contents, memory_peak, property_test, read, write

Packer = Callable[[bytes], bytes]
PACKERS: dict[str, Packer] = {"c.jsonl.gz": gzip.compress, "c.jsonl.zst": zstandard.ZstdCompressor().compress}
TEXT = b"".join(b'{"text": "%d"}\n' % number for number in range(100_000))


@pytest.fixture(params=["isal", "zlib", "zstd"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a compressed file, gzip once with each of the two libraries that can read it."""
    if request.param == "isal":
        pytest.importorskip("isal")
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    return "c.jsonl.zst" if request.param == "zstd" else "c.jsonl.gz"


class Trickle(io.BytesIO):
    """Gives a few bytes at a time, as a pipe may."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return self.read(random.Random(self.tell()).randint(1, 9))


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> CorpusFile:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Trickle(content)))
    return CorpusFile("-", None)


def contents_of(found: list[Chunk]) -> list[tuple[int, int, type, bytes]]:
    payloads = [chunk.load() for chunk in found]
    return [(c.start, c.stop, type(p), bytes_of(p)) for c, p in zip(found, payloads, strict=True)]


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst", "-"])
@property_test
@given(contents, st.integers(0, 80), st.none() | st.integers(0, 80))
def test_the_chunks_are_those_of_a_plain_file(
    tmp_path: Path, name: str, content: bytes, start: int, stop: int | None
) -> None:
    expected = contents_of(read(write(tmp_path / "c.jsonl", content), tmp_path, start, stop))
    with pytest.MonkeyPatch.context() as patch:
        if name == "-":
            file = standard_input(patch, content)
        else:
            file = write(tmp_path / name, PACKERS[name](content))
        found = read(file, tmp_path, start, stop)
    assert contents_of(found) == expected
    temporary = [chunk.load() for chunk in found if isinstance(chunk.load(), LongLine)]
    assert all(isinstance(payload, LongLine) and payload.temporary for payload in temporary)
    for chunk in found:
        before = content[: chunk.start].count(b"\n")
        assert (
            place_of(file, chunk, chunk.load(), 0) == f"{'standard input' if name == '-' else file.path}:{before + 1}"
        )


def test_place_of_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = standard_input(monkeypatch, b"a\nb\ncccc\nd\ne\n")
    first, second = read(file, tmp_path)
    assert place_of(file, first, first.load(), 4) == "standard input:3"
    assert place_of(file, second, second.load(), 2) == "standard input:5"
    assert (first.stored_bytes <= second.stored_bytes, second.stored_bytes) == (True, 13)


def test_members_frames_and_stored_bytes(tmp_path: Path, form: str) -> None:
    packed = b"".join(PACKERS[form](TEXT[at : at + 90_000]) for at in range(0, len(TEXT), 90_000))
    packed += bytes(700) if form.endswith(".gz") else b"\x53\x2a\x4d\x18\x03\0\0\0abc"  # padding; a skippable frame
    file = write(tmp_path / form, packed)
    found = read(file, tmp_path, sizes=Sizes(chunk_bytes=100_000))
    assert b"".join(bytes_of(chunk.load()) for chunk in found) == TEXT
    assert len(found) == -(-len(TEXT) // 100_000)
    stored = [chunk.stored_bytes for chunk in found]
    assert stored == sorted(stored)
    assert stored[-1] == len(packed)
    assert read(write(tmp_path / form, b""), tmp_path) == []


def test_a_long_line_is_not_held(tmp_path: Path, form: str) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    file = write(tmp_path / form, PACKERS[form](b"ab\n" + b"x" * 30_000_000 + b"\ncd\n"))
    with memory_peak() as peak:
        found = read(file, spool, sizes=Sizes(1 << 10, 1 << 12))
        assert peak() < 12_000_000  # measured: 8.5 MB with zlib, less with the others
    assert [(chunk.start, chunk.stop) for chunk in found] == [(0, 3), (3, 30_000_004), (30_000_004, 30_000_007)]
    line = found[1].load()
    assert isinstance(line, LongLine)
    assert (line.start, line.stop, line.temporary, line.path.parent) == (0, 30_000_001, True, spool)
    assert line.path.read_bytes() == b"x" * 30_000_000 + b"\n"
    assert line_of(file, found[2].start) == 3
    line.path.unlink()
    unfinished = chunks(file, 0, "text", spool=spool, sizes=Sizes(1 << 10, 1 << 12))
    next(unfinished)
    unfinished.close()  # type: ignore[attr-defined]
    assert os.listdir(spool) == []


def test_pieces_are_small_however_well_a_file_is_compressed(form: str) -> None:
    pieces = gzip_pieces if form.endswith(".gz") else zstd_pieces
    sizes = [len(piece) for piece in pieces(io.BytesIO(PACKERS[form](bytes(50_000_000))))]
    assert (sum(sizes), max(sizes) <= PIECE_BYTES) == (50_000_000, True)


def all_of(pieces: Iterator[bytes]) -> tuple[bytes, str | None]:
    found = []
    try:
        for piece in pieces:
            found.append(piece)
    except DamagedStream as damage:
        return b"".join(found), str(damage)
    return b"".join(found), None


def test_every_truncation_is_seen(form: str) -> None:
    pieces = gzip_pieces if form.endswith(".gz") else zstd_pieces
    options: list[dict[str, Any]] = [{}, {"write_checksum": True}, {"write_content_size": False}, {"level": 19}]
    packers: list[Packer] = [gzip.compress] if form.endswith(".gz") else [
        zstandard.ZstdCompressor(**option).compress for option in options
    ]  # fmt: skip
    for packer in packers:
        packed = packer(b"abc" + TEXT[:2000])
        for cut in range(1, len(packed)):
            found, damage = all_of(pieces(io.BytesIO(packed + packed[:cut])))
            assert found.startswith(b"abc" + TEXT[:2000]), cut
            assert damage is not None, cut
            assert "is not complete" in damage, cut
        assert all_of(pieces(io.BytesIO(packed + packed))) == (2 * (b"abc" + TEXT[:2000]), None)


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "garbage"])
def test_damage_comes_after_all_that_is_whole(tmp_path: Path, form: str, damage: str) -> None:
    packed = PACKERS[form](TEXT)
    half = len(packed) // 2
    damaged = {
        "truncated": packed[:half],
        "overwritten": packed[:half] + bytes(50) + packed[half + 50 :],
        "garbage": packed + b"this is not a header",
    }[damage]
    file = write(tmp_path / form, damaged)
    found: list[Chunk] = []
    name = "gzip" if form.endswith(".gz") else "zstd"
    message = rf"the {name} data is truncated or damaged after line \d+ \(.*; copy the file again"
    with pytest.raises(DamagedFile, match=message) as error:
        found.extend(chunks(file, 0, "text", spool=tmp_path, sizes=Sizes(1 << 16, 1 << 20)))
    assert error.value.reason == f"damaged {name} file"
    payloads = [chunk.load() for chunk in found]
    assert all(isinstance(payload, JsonLines) and payload.content.endswith(b"\n") for payload in payloads)
    content = b"".join(bytes_of(payload) for payload in payloads)
    assert f"after line {content.count(bytes([10]))} (" in str(error.value)
    if damage != "overwritten":  # what inflates wrongly is content until its checksum is seen
        assert TEXT.startswith(content)
        assert len(content) > (100_000 if damage == "truncated" else len(TEXT) - 1)


def test_a_file_that_shrinks_or_is_not_compressed(tmp_path: Path, form: str) -> None:
    file = write(tmp_path / form, PACKERS[form](TEXT))
    os.truncate(file.path, 5000)
    with pytest.raises(
        DataError, match=rf"corpus file {file.path} has changed while it was read: \d+ bytes .* 5000 now"
    ):
        read(file, tmp_path)
    file = write(tmp_path / form, TEXT)
    with pytest.raises(DamagedFile, match="truncated or damaged after line 0"):
        read(file, tmp_path)


def test_a_full_spool_is_an_error(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / form, PACKERS[form](b"x" * 100_000))
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "line")))
    (tmp_path / "line").touch()
    with pytest.raises(
        DataError, match=rf"no space is left in {tmp_path} for a line of the input .*; free space there"
    ):
        read(file, tmp_path, sizes=SMALL)
    assert not (tmp_path / "line").exists()


def test_zstandard_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "c.jsonl.zst", PACKERS["c.jsonl.zst"](TEXT))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (file,) = corpus_files([str(tmp_path / "c.jsonl.zst")])
    with pytest.raises(DataError, match=r"files needs the package zstandard; pip install zstandard"):
        read(file, tmp_path)
