"""Tasks share a corpus: their shares joined are the whole, each line once, for any files and any number of tasks."""

import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.data.corpus import CorpusFile
from megagpt.data.sources import FileRange, LongText, Payload, Texts, assign_ranges, chunks
from megagpt.errors import DataError
from tests.unit.data.test_sources import SMALL, bytes_of, contents, property_test, write

files_of_all_kinds = st.lists(
    st.tuples(st.sampled_from([".jsonl", ".jsonl", ".jsonl.gz", ".txt"]), contents), max_size=6
)


def content_of(payload: Payload) -> bytes:
    if isinstance(payload, Texts):
        return bytes(payload.data)
    return payload.path.read_bytes() if isinstance(payload, LongText) else bytes_of(payload)


@property_test
@given(files_of_all_kinds, st.integers(1, 40))
def test_the_shares_joined_are_the_whole(tmp_path: Path, kinds: list[tuple[str, bytes]], num_tasks: int) -> None:
    files = []
    for number, (suffix, content) in enumerate(kinds):
        files.append(
            write(tmp_path / f"{number}{suffix}", gzip.compress(content) if suffix.endswith("gz") else content)
        )
    joined: list[bytes] = [b""] * len(files)
    order = []
    for task in range(num_tasks):
        for number, start, stop in assign_ranges(files, task, num_tasks):
            order.append((number, start))
            for chunk in chunks(files[number], number, "text", start, stop, spool=tmp_path, sizes=SMALL):
                joined[number] += content_of(chunk.load())
    whole = [b"".join(content_of(c.load()) for c in chunks(f, 0, "text", spool=tmp_path, sizes=SMALL)) for f in files]
    assert joined == whole
    assert order == sorted(order), "tasks in order read the files in order"
    assert {number for number, _ in order} == set(range(len(files))), "an empty file too is someone's"


@property_test
@given(st.lists(st.integers(0, 2**45), min_size=1, max_size=30), st.integers(1, 100))
def test_plain_files_are_cut_into_equal_shares(sizes: list[int], num_tasks: int) -> None:
    files = [CorpusFile(f"{number}.jsonl", size) for number, size in enumerate(sizes)]
    ranges: list[FileRange] = []
    for task in range(num_tasks):
        share = assign_ranges(files, task, num_tasks)
        size = sum((sizes[number] if stop is None else stop) - start for number, start, stop in share)
        assert abs(size - sum(sizes) / num_tasks) < 1
        ranges += share
    for (file, start, stop), following in pairwise(ranges):
        assert following[:2] == ((file + 1, 0) if stop is None else (file, stop)), (start, following)
    assert ranges[0][:2] == (0, 0)
    assert (ranges[-1].file, ranges[-1].stop) == (len(files) - 1, None)


def test_files_that_are_not_cut_are_spread_evenly() -> None:
    files = [CorpusFile(f"{number}.jsonl.zst", size) for number, size in enumerate([9, 13, 11, 9])]
    assert [assign_ranges(files, task, 4) for task in range(4)] == [[(number, 0, None)] for number in range(4)]
    assert [len(assign_ranges(files, task, 2)) for task in range(2)] == [2, 2]
    assert assign_ranges(files, 0, 1) == [(number, 0, None) for number in range(4)]


def test_bad_shares() -> None:
    stdin = [CorpusFile("-", None)]
    assert assign_ranges(stdin, 0, 1) == [(0, 0, None)]
    with pytest.raises(DataError, match="2 tasks cannot share standard input; name files, or use one task"):
        assign_ranges(stdin, 0, 2)
    for task in (-1, 3):
        with pytest.raises(DataError, match=f"task {task} of 3 tasks does not exist; tasks are numbered from 0 to 2"):
            assign_ranges([], task, 3)
