"""A document's side follows from its ids and the seed alone, and no document is lost."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data import dataset_output, idx_file, split_documents
from megagpt.data.indexed import IndexedDataset
from megagpt.data.merge import merge_datasets
from megagpt.data.sidecar import read_sidecar
from megagpt.data.split_documents import split_dataset
from megagpt.data.verify import verify_dataset
from megagpt.errors import DataError
from tests.unit.data.hashed import file_bytes, random_documents, write_dataset, write_files, write_sidecar
from tests.unit.data.hashed import sidecar_of as described

SHARES = (0.5, 0.3, 0.2)
SIDES = ("train", "valid", "test")


def expected_side(document: list[int], seed: int, shares: tuple[float, float, float] = SHARES) -> str:
    """The rule in its simplest form, for one document."""
    position = (xxhash.xxh3_64_intdigest(np.array(document, dtype="<i4").tobytes(), seed) >> 11) / 2**53
    return SIDES[0] if position < shares[0] else SIDES[1] if position < shares[0] + shares[1] else SIDES[2]


def documents_of(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset.document(number).tolist() for number in range(len(dataset))]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_each_document_is_on_the_side_of_its_hash(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("split")
    documents = random_documents(data.draw(st.integers(0, 50)), 80, longest=8)
    seed = data.draw(st.sampled_from([0, 7, 2**40]))
    sizes = data.draw(st.sampled_from([[80], [1, 30, 49], [20, 0, 60]]))
    dtype = data.draw(st.sampled_from(["<u2", "<i4", "<i8"]))
    write_dataset(
        folder / "d", documents, sizes, [("a", 33), ("b", 0), ("c", 47)], dtype, data.draw(st.sampled_from([0, 3]))
    )
    report = split_dataset(str(folder / "d"), str(folder / "s"), SHARES, seed)
    for side in SIDES:
        mine = [document for document in documents if expected_side(document, seed) == side]
        assert documents_of(folder / f"s-{side}") == mine
        assert verify_dataset(str(folder / f"s-{side}")).problems == ()
        sidecar = read_sidecar(folder / f"s-{side}.json")
        assert sidecar is not None
        from_a = [document for document in documents[:33] if expected_side(document, seed) == side]
        counted = [(source.path, source.num_documents, source.num_tokens) for source in sidecar.sources]
        assert counted == [
            ("a", len(from_a), sum(map(len, from_a))),
            ("b", 0, 0),
            ("c", len(mine) - len(from_a), sum(map(len, mine)) - sum(map(len, from_a))),
        ]
        assert (sidecar.num_documents, sidecar.num_tokens) == (len(mine), sum(map(len, mine)))
        assert sidecar.max_token_id == max(map(max, mine))
        rule = "train 0.5, valid 0.3, test 0.2"
        reason = f"in another side of the split of {folder / 'd'} by document hash ({rule}, seed {seed})"
        assert sidecar.skipped == {reason: 80 - len(mine)}
    assert [side.num_documents for side in report.sides] == [len(documents_of(folder / f"s-{side}")) for side in SIDES]


def test_a_side_does_not_depend_on_place_other_documents_or_id_type(tmp_path: Path) -> None:
    documents = random_documents(1, 200, longest=5)
    assert len({tuple(document) for document in documents}) < 200, "some documents are there twice"
    write_files(tmp_path / "d", documents)
    write_files(tmp_path / "e", [*random_documents(2, 50), *reversed(documents)], "<i4")
    for name in "de":
        split_dataset(str(tmp_path / name), str(tmp_path / name), SHARES)
    sides = {side: [{tuple(d) for d in documents_of(tmp_path / f"{name}-{side}")} for name in "de"] for side in SIDES}
    known = {tuple(document) for document in documents}
    for side in SIDES:
        assert sides[side][0] == sides[side][1] & known
    assert not sides["train"][0] & sides["valid"][0]
    split_dataset(str(tmp_path / "d"), str(tmp_path / "f"), SHARES, seed=1)
    assert documents_of(tmp_path / "f-train") != documents_of(tmp_path / "d-train")


def test_the_sides_of_parts_joined_are_the_sides_of_the_whole(tmp_path: Path) -> None:
    documents = random_documents(3, 100)
    write_dataset(tmp_path / "whole", documents)
    split_dataset(str(tmp_path / "whole"), str(tmp_path / "whole"), SHARES)
    for name, chosen in (("a", documents[:40]), ("b", documents[40:])):
        write_dataset(tmp_path / name, chosen)
        split_dataset(str(tmp_path / name), str(tmp_path / name), SHARES)
    merge_datasets(tmp_path / "m", [str(tmp_path / "a-valid"), str(tmp_path / "b-valid")], verify=True)
    assert file_bytes(tmp_path / "m") == file_bytes(tmp_path / "whole-valid")


def test_sequences_of_documents_are_kept_and_blocks_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = random_documents(4, 120)
    write_dataset(tmp_path / "d", documents, [50, 70], split_at=4)
    split_dataset(str(tmp_path / "d"), str(tmp_path / "s"), SHARES)
    write_files(tmp_path / "wanted", [d for d in documents if expected_side(d, 0) == "train"], split_at=4)
    assert file_bytes(tmp_path / "s-train") == file_bytes(tmp_path / "wanted")
    monkeypatch.setattr(idx_file, "BLOCK_ENTRIES", 7)
    monkeypatch.setattr(split_documents, "_BLOCK_TOKENS", 20)
    seen: list[tuple[int, int]] = []
    split_dataset(
        str(tmp_path / "d"), str(tmp_path / "t"), SHARES, on_tokens=lambda done, total: seen.append((done, total))
    )
    for side in SIDES:
        for suffix in (".bin", ".idx", ".json"):
            assert (
                Path(f"{tmp_path / 't'}-{side}{suffix}").read_bytes()
                == Path(f"{tmp_path / 's'}-{side}{suffix}").read_bytes()
            )
    num_tokens = sum(map(len, documents))
    assert (seen[-1], len(seen) > 60) == ((num_tokens, num_tokens), True)


def test_shares_are_met_and_a_share_of_zero_writes_nothing(tmp_path: Path) -> None:
    write_files(tmp_path / "d", random_documents(5, 20000))
    report = split_dataset(str(tmp_path / "d"), str(tmp_path / "s"), (0.9, 0.1, 0.0))
    assert [side.prefix for side in report.sides] == [str(tmp_path / "s-train"), str(tmp_path / "s-valid")]
    assert report.sides[1].num_documents == pytest.approx(2000, abs=4 * (20000 * 0.1 * 0.9) ** 0.5)
    assert sum(side.num_documents for side in report.sides) == 20000
    assert not list(tmp_path.glob("s-test*"))
    assert not (tmp_path / "s-train.json").exists(), "a dataset without a sidecar gives some without"
    assert f"{report.sides[1].num_documents} documents (" in report.lines()[2]


def test_without_hashes_and_counts_the_sides_have_none(tmp_path: Path) -> None:
    documents = random_documents(6, 40)
    write_files(tmp_path / "d", documents)
    whole = described(documents, [], [("a", 40)])
    old = whole.__class__(**{**whole.__dict__, "sources": (whole.sources[0].__class__("a", 5, 0, 0, 0, 0),)})
    write_sidecar(tmp_path / "d", old)
    split_dataset(str(tmp_path / "d"), str(tmp_path / "s"), SHARES)
    side = read_sidecar(tmp_path / "s-train.json")
    assert side is not None
    assert (side.shards, side.sources) == ((), old.sources)


def test_errors_name_the_value_and_keep_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = random_documents(7, 3)
    write_dataset(tmp_path / "d", documents, dtype="<i8")
    name = str(tmp_path / "d")
    with pytest.raises(DataError, match=r"--train 0.5 \+ --valid 0.3 \+ --test 0.1 must be three shares .* sum to 0.9"):
        split_dataset(name, str(tmp_path / "s"), (0.5, 0.3, 0.1))
    with pytest.raises(DataError, match=r"--valid -0.5 .* must be three shares of at least 0"):
        split_dataset(name, str(tmp_path / "s"), (1.5, -0.5, 0.0))
    with pytest.raises(DataError, match=r"the valid share 1e-09 gets none of the 3 documents of .*d; use more"):
        split_dataset(name, str(tmp_path / "s"), (1 - 1e-9, 1e-9, 0.0))
    write_dataset(tmp_path / "s-valid", documents)
    with pytest.raises(DataError, match=r"s-valid.bin exists; choose another output"):
        split_dataset(name, str(tmp_path / "s"), SHARES)
    for path in tmp_path.glob("s-valid*"):
        os.unlink(path)
    write_sidecar(tmp_path / "empty", described([], [], []))
    with pytest.raises(DataError, match=r"share of a task without documents: there is nothing to split"):
        split_dataset(str(tmp_path / "empty"), str(tmp_path / "s"), SHARES)
    write_files(tmp_path / "far", [[2**40, 1]], "<i8")
    with pytest.raises(DataError, match=r"an id is not in the range of int32: 1 to 1099511627776"):
        split_dataset(str(tmp_path / "far"), str(tmp_path / "s"), (1.0, 0.0, 0.0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dataset_output.os, "fsync", full)
    with pytest.raises(DataError, match=r"no space is left on the disk of .*s: about"):
        split_dataset(name, str(tmp_path / "s"), (1.0, 0.0, 0.0))
    assert not list(tmp_path.glob("s-*"))
