"""Every damaged byte of a dataset is found, and named by its place."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data import idx_file, verify
from megagpt.data.sidecar import read_sidecar
from megagpt.data.verify import Verification, verify_dataset, verify_share
from megagpt.errors import DataError
from tests.unit.data.hashed import (
    EOD,
    VOCAB,
    file_bytes,
    random_documents,
    sidecar_of,
    write_dataset,
    write_files,
    write_sidecar,
)


def problems_of(prefix: Path) -> str:
    """What is wrong, whether it is reported or raised."""
    try:
        verify_dataset(str(prefix)).raise_problems()
    except DataError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    prefix = tmp_path_factory.mktemp("verify") / "d"
    documents = random_documents(data.draw(st.integers(0, 100)), 12)
    write_dataset(prefix, documents, [5, 0, 7])
    assert problems_of(prefix) == ""
    suffix = data.draw(st.sampled_from([".bin", ".idx"]))
    content = bytearray(Path(f"{prefix}{suffix}").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    Path(f"{prefix}{suffix}").write_bytes(content)
    assert problems_of(prefix), (suffix, place)


def test_a_damaged_shard_is_named_with_its_bytes_documents_and_sources(tmp_path: Path) -> None:
    documents = random_documents(1, 30)
    sidecar = write_dataset(tmp_path / "d", documents, [10, 12, 8], [("a.jsonl", 15), ("b.jsonl", 2), ("c.jsonl", 13)])
    content = bytearray((tmp_path / "d.bin").read_bytes())
    start = 2 * sidecar.shards[0].num_tokens
    stop = start + 2 * sidecar.shards[1].num_tokens
    content[start + 1] ^= 0x80
    (tmp_path / "d.bin").write_bytes(content)
    found = verify_dataset(str(tmp_path / "d"), workers=3)
    assert found.problems[0].startswith(
        f"shard 1 of 3 does not have its hash: bytes {start} to {stop} of {tmp_path / 'd.bin'} (documents 10 to 21), "
        "built from a.jsonl from position 10, 1 files between, to c.jsonl at 22; "
        f"{sidecar.shards[1].hash} was written, "
    )
    assert "beyond the vocabulary of 1000" in found.problems[1]
    with pytest.raises(DataError, match=r"dataset .*d is damaged; copy it again or rebuild it:\nshard 1 of 3"):
        found.raise_problems()


def test_a_shard_of_one_source_names_it(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", random_documents(8, 30), [10, 20])
    content = bytearray((tmp_path / "d.bin").read_bytes())
    content[-3] ^= 1
    (tmp_path / "d.bin").write_bytes(content)
    assert "shard 1 of 2 does not have its hash" in problems_of(tmp_path / "d")
    assert "built from corpus.jsonl, positions 10 to 30;" in problems_of(tmp_path / "d")


def test_what_is_well_is_said(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", random_documents(2, 30), [10, 12, 8])
    seen: list[tuple[int, int]] = []
    found = verify_dataset(str(tmp_path / "d"), 2, lambda done, total: seen.append((done, total)))
    assert found.problems == ()
    assert (found.num_shards, found.checked_ids) == (3, True)
    assert found.lines()[0].startswith("verified       3 shards have their hash; ids and document ends are right (")
    size = os.path.getsize(tmp_path / "d.bin")
    assert (len(seen), seen[-1]) == (3, (size, size))
    found.raise_problems()
    os.unlink(tmp_path / "d.json")
    found = verify_dataset(str(tmp_path / "d"))
    assert found.lines()[0].startswith("verified       no hashes to compare with; nothing says what its ids should be")


def test_small_blocks_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = random_documents(3, 60)
    documents[37][-1] = 7
    write_files(tmp_path / "d", documents, split_at=3)
    write_sidecar(tmp_path / "d", sidecar_of(documents, [20, 40], [("x", 60)]))
    whole = verify_dataset(str(tmp_path / "d")).problems
    assert whole == (f"document 37 does not end with the end-of-document id {EOD}",)
    monkeypatch.setattr(idx_file, "BLOCK_ENTRIES", 4)
    monkeypatch.setattr(verify, "_READ_BYTES", 6)
    assert verify_dataset(str(tmp_path / "d")).problems == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[3].append(EOD), r"in documents 0 to 9 there are 11 end-of-document ids .id 1."),
        (lambda d: d[3].clear(), r"document 3 does not end with the end-of-document id 1"),
        (lambda d: d[3].insert(0, VOCAB), r"in documents 0 to 9 there is id 1000, beyond the vocabulary of 1000"),
        (lambda d: d[3].insert(0, -4), r"in documents 0 to 9 there is a negative id, -4"),
    ],
)
def test_ids_and_ends_that_cannot_be(tmp_path: Path, change: object, message: str) -> None:
    documents = random_documents(4, 10)
    change(documents)  # type: ignore[operator]
    write_dataset(tmp_path / "d", documents, dtype="<i4")
    with pytest.raises(DataError, match=message):
        verify_dataset(str(tmp_path / "d")).raise_problems()


def test_a_sidecar_that_does_not_add_up_is_a_problem(tmp_path: Path) -> None:
    documents = random_documents(5, 10)
    sidecar = write_dataset(tmp_path / "d", documents, [5, 5])
    one, two = sidecar.shards
    for changed, message in (
        (replace(sidecar, max_token_id=2000), r"its largest id is \d+; its .json says 2000"),
        (replace(sidecar, shards=(one,)), r"has 10 documents and \d+ tokens, and in its shards 5 and \d+"),
        (
            replace(
                sidecar,
                shards=(replace(one, num_tokens=one.num_tokens + 1), replace(two, num_tokens=two.num_tokens - 1)),
            ),
            r"shard 1 begins with document 5, which is at token \d+ in d.idx and at \d+ in its .json",
        ),
        (
            replace(sidecar, sources=(replace(sidecar.sources[0], num_documents=4),)),
            "has 10 documents, and 4 in its so",
        ),
    ):
        write_sidecar(tmp_path / "d", changed)
        with pytest.raises(DataError, match=message):
            verify_dataset(str(tmp_path / "d")).raise_problems()
    write_sidecar(tmp_path / "e", sidecar_of([], [], []))
    with pytest.raises(DataError, match=r"e is the share of a task without documents: there is nothing to verify"):
        verify_dataset(str(tmp_path / "e"))


def test_an_older_dataset_without_hashes_still_has_its_ids_verified(tmp_path: Path) -> None:
    documents = random_documents(6, 10)
    write_dataset(tmp_path / "d", documents, [])
    found = verify_dataset(str(tmp_path / "d"))
    assert (found.num_shards, found.problems) == (0, ())
    documents[4][-1] = 5
    write_files(tmp_path / "d", documents)
    assert "document 4 does not end with" in problems_of(tmp_path / "d")


def test_long_lists_of_problems_are_cut() -> None:
    found = Verification("d", 1, 1, 1.0, True, tuple(f"problem {number}" for number in range(30)))
    with pytest.raises(DataError, match="problem 19\nand 10 more"):
        found.raise_problems()


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", random_documents(7, 10))
    content = file_bytes(tmp_path / "d")[0]
    (tmp_path / "d.bin").write_bytes(content[:-4])
    num_tokens = len(content) // 2
    with pytest.raises(DataError, match=r"d.bin became shorter while it was read"):
        verify.hash_tokens(tmp_path / "d.bin", np.dtype("<u2"), 0, num_tokens)


def share_problems(prefix: Path, num_ranks: int, workers: int) -> str:
    """What any of the ranks finds wrong with its share."""
    for rank in range(num_ranks):
        try:
            verify_share(str(prefix), rank, num_ranks, workers, lambda: None).raise_problems()
        except DataError as error:
            return str(error)
    return ""


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_shares_of_ranks_find_any_flipped_bit(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    prefix = tmp_path_factory.mktemp("verify") / "d"
    write_dataset(prefix, random_documents(data.draw(st.integers(0, 100)), 12), [5, 0, 7])
    num_ranks, workers = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    assert share_problems(prefix, num_ranks, workers) == ""
    suffix = data.draw(st.sampled_from([".bin", ".idx"]))
    content = bytearray(Path(f"{prefix}{suffix}").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    Path(f"{prefix}{suffix}").write_bytes(content)
    assert share_problems(prefix, num_ranks, workers), (suffix, place)


def test_shares_cover_each_shard_once_in_equally_many_rounds(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", random_documents(3, 12), [2, 3, 1, 5, 1])
    for num_ranks, workers in ((1, 1), (2, 1), (3, 1), (2, 2), (7, 1)):
        rounds: list[int] = []
        shares = [
            verify_share(str(tmp_path / "d"), rank, num_ranks, workers, partial(rounds.append, rank))
            for rank in range(num_ranks)
        ]
        assert sum(share.num_shards for share in shares) == 5
        assert sum(share.num_bytes for share in shares) == (tmp_path / "d.bin").stat().st_size
        assert {rounds.count(rank) for rank in range(num_ranks)} == {-(-5 // (num_ranks * workers))}


def test_a_share_needs_hashes(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", random_documents(3, 12), [12])
    sidecar = read_sidecar(tmp_path / "d.json")
    assert sidecar is not None
    write_sidecar(tmp_path / "d", replace(sidecar, shards=()))
    with pytest.raises(DataError, match=r"d has no recorded hashes to verify: its \.json is of an older format"):
        verify_share(str(tmp_path / "d"), 0, 1, 1, lambda: None)
    (tmp_path / "d.json").unlink()
    with pytest.raises(DataError, match=r"it has no \.json beside it; build it again with `megagpt data build INPUT "):
        verify_share(str(tmp_path / "d"), 0, 1, 1, lambda: None)
