"""Chunks of plain files: joined they are the file, each line once, whatever the sizes and wherever reading goes on."""

import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megagpt.data.corpus import CorpusFile, corpus_files
from megagpt.data.sources import Chunk, JsonLines, LongLine, LongText, Payload, Sizes, Texts, chunks, line_of, place_of
from megagpt.errors import DataError

SMALL = Sizes(chunk_bytes=8, long_line_bytes=16)
BOM = b"\xef\xbb\xbf"

lines = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"x")), max_size=12)
contents = st.builds(lambda bom, body, end: bom + b"\n".join(body) + end, st.sampled_from([b"", BOM]), lines,
                     st.sampled_from([b"", b"\n", b"\r\n"]))  # fmt: skip
property_test = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, content: bytes) -> CorpusFile:
    path.write_bytes(content)
    return corpus_files([str(path)])[0]


def read(file: CorpusFile, spool: Path, start: int = 0, stop: int | None = None, sizes: Sizes = SMALL) -> list[Chunk]:
    return list(chunks(file, 3, "text", start, stop, spool=spool, sizes=sizes))


def bytes_of(payload: Payload) -> bytes:
    if isinstance(payload, JsonLines):
        return payload.content
    assert isinstance(payload, LongLine)
    return payload.path.read_bytes()[payload.start : payload.stop]


@contextmanager
def memory_peak() -> Iterator[Callable[[], int]]:
    """The most bytes of Python objects that were held at once inside, above those held before."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def line_starts(content: bytes) -> list[int]:
    """Where lines start, each of which is at least one byte long; a BOM belongs to none."""
    first = len(BOM) if content.startswith(BOM) else 0
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    return [start for start in [first, *ends] if start < len(content)]


def expected_edges(content: bytes, sizes: Sizes) -> Iterator[int]:
    """The first line start at or after each multiple of chunk_bytes."""
    for edge in range(0, len(content) + sizes.chunk_bytes, sizes.chunk_bytes):
        yield next((start for start in line_starts(content) if start >= edge), len(content))


@property_test
@given(contents)
def test_chunks_joined_are_the_file(tmp_path: Path, content: bytes) -> None:
    file = write(tmp_path / "c.jsonl", content)
    found = read(file, tmp_path)
    assert b"".join(bytes_of(chunk.load()) for chunk in found) == content.removeprefix(BOM)
    assert all(chunk.stop == following.start for chunk, following in pairwise(found))
    assert all(chunk.file == 3 and chunk.start < chunk.stop == chunk.stored_bytes for chunk in found)
    starts = line_starts(content)
    assert {chunk.start for chunk in found} <= set(starts)
    longest = {start: stop - start for start, stop in pairwise([*starts, len(content)])}
    for chunk in found:
        payload = chunk.load()
        inside = [longest[start] for start in starts if chunk.start <= start < chunk.stop]
        if isinstance(payload, LongLine):
            assert inside[0] > SMALL.long_line_bytes
            assert len(inside) == 1
            assert not payload.temporary
        else:
            assert max(inside) <= SMALL.long_line_bytes
    edges = set(expected_edges(content, SMALL)) - {len(content)}
    assert edges <= {chunk.start for chunk in found}, "an edge of the grid was passed over"
    others = {chunk.start for chunk in found} - edges
    assert others <= {s for s, n in longest.items() if n > SMALL.long_line_bytes}, "only long lines add edges"


@property_test
@given(contents, st.data())
def test_reading_goes_on_at_any_chunk(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    file = write(tmp_path / "c.jsonl", content)
    whole = [chunk[:4] for chunk in read(file, tmp_path)]
    if whole:
        at = data.draw(st.integers(0, len(whole) - 1))
        assert [chunk[:4] for chunk in read(file, tmp_path, start=whole[at][1])] == whole[at:]
        assert [chunk[:4] for chunk in read(file, tmp_path, stop=whole[at][2])] == whole[: at + 1]


@property_test
@given(contents, st.lists(st.integers(0, 600), max_size=4))
def test_a_line_belongs_to_the_range_in_which_it_starts(tmp_path: Path, content: bytes, cuts: list[int]) -> None:
    file = write(tmp_path / "c.jsonl", content)
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), None]
    joined = []
    for start, stop in pairwise(edges):
        assert start is not None
        for chunk in read(file, tmp_path, start, stop):
            joined.append(bytes_of(chunk.load()))
            assert start <= chunk.start or start < len(BOM)
            assert stop is None or chunk.start < stop
    assert b"".join(joined) == content.removeprefix(BOM)


def test_a_long_line_is_found_without_holding_it(tmp_path: Path) -> None:
    file = write(tmp_path / "c.jsonl", b"ab\n" + b"x" * 30_000_000 + b"\ncd\n")
    with memory_peak() as peak:
        found = read(file, tmp_path, sizes=Sizes(1 << 10, 1 << 12))
        assert peak() < 4_000_000
    assert [(chunk.start, chunk.stop) for chunk in found] == [(0, 3), (3, 30_000_004), (30_000_004, 30_000_007)]
    assert found[1].load() == LongLine(tmp_path / "c.jsonl", 3, 30_000_004)
    assert line_of(file, found[2].start) == 3
    assert place_of(file, found[2], found[2].load(), 1) == f"{file.path}:3"


def test_plain_text(tmp_path: Path) -> None:
    file = write(tmp_path / "c.txt", BOM + "一\r\n二\n".encode())
    (chunk,) = read(file, tmp_path, sizes=Sizes())
    payload = chunk.load()
    assert isinstance(payload, Texts)
    assert (bytes(payload.data), payload.offsets.tolist(), payload.bad) == ("一\n二\n".encode(), [0, 8], ())
    assert (chunk.file, chunk.start, chunk.stop, chunk.stored_bytes) == (3, 0, 1, 12)
    assert read(file, tmp_path, start=1) == []
    (chunk,) = read(file, tmp_path)
    assert chunk.load() == LongText(tmp_path / "c.txt", 0, 12), "longer than a chunk"
    file = write(tmp_path / "d.txt", b"one\ntwo \xff\n")
    (chunk,) = read(file, tmp_path, sizes=Sizes())
    assert chunk.load() == LongText(tmp_path / "d.txt", 0, 10), "not UTF-8: whoever encodes it says where"
    assert place_of(file, chunk, chunk.load(), 8) == f"{file.path}:2"


@pytest.mark.parametrize("name", ["c.jsonl", "c.txt"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, b"ab\ncd\n" * 10)
    found = read(file, tmp_path, sizes=Sizes())
    os.truncate(file.path, 20)
    with pytest.raises(DataError, match=rf"corpus file {file.path} has changed while it was read: 60 bytes .*, 20 now"):
        found[0].load()
    if name == "c.jsonl":
        with pytest.raises(DataError, match="has changed while it was read"):
            read(file, tmp_path)
    os.remove(file.path)
    with pytest.raises(DataError, match=r"is gone; it was there when this run listed its input"):
        found[0].load()


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "c.jsonl", b"ab\n")

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)  # tests may run as root, whom permissions do not stop
    with pytest.raises(DataError, match=r"corpus file .*c.jsonl may not be read by this user; change its permissions"):
        read(file, tmp_path)
