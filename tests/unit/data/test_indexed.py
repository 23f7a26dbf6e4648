"""The indexed dataset: byte for byte Megatron's, both ways, and every kind of damage."""

import errno
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megagpt.data.indexed import IndexedDataset, dataset_files, token_dtype
from megagpt.data.indexed_writer import IndexedWriter
from megagpt.data.sidecar import FORMAT_VERSION, Shard, Sidecar, Source, read_sidecar
from megagpt.errors import DataError

SOURCES = (Source("a.jsonl", 12, 3, 106, 9, 8), Source("-", None, 1, 1, 1, 1))
SHARD = Shard(0, 0, 1, 7, 4, 107, 10, "a" * 32, "b" * 32)
DOCUMENTS = [[5, 6, 7, 1], [1], [65, 2, 1], list(range(2, 100)) + [1]]


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 1000, sidecar: bool = False) -> None:
    ids = np.array([token_id for document in documents for token_id in document], dtype=np.int64)
    with IndexedWriter(prefix, token_dtype(vocab_size)) as writer:
        writer.add_documents(ids, [len(document) for document in documents])
        writer.finish(sidecar_of(writer).to_json() if sidecar else None)


def sidecar_of(writer: IndexedWriter) -> Sidecar:
    return Sidecar(
        tokenizer_kind="sentencepiece",
        fingerprint="f" * 64,
        vocab_size=1000,
        eod_id=1,
        max_token_id=writer.max_token_id,
        num_documents=writer.num_documents,
        num_tokens=writer.num_tokens,
        text_bytes=10,
        num_characters=9,
        sources=SOURCES,
        skipped={"not JSON": 2},
        shards=(SHARD,),
    )


def write_with_megatron(prefix: Path, documents: list[list[list[int]]], dtype: type) -> None:
    """`documents`: each a list of sequences."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        flat = [token_id for sequence in document for token_id in sequence]
        builder.add_document(torch.tensor(flat, dtype=torch.int64), [len(sequence) for sequence in document])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65499, np.uint16), (65500, np.int32)])
def test_the_bytes_are_megatrons(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    from megatron.core.datasets.indexed_dataset import DType

    assert token_dtype(vocab_size) == np.dtype(DType.optimal_dtype(vocab_size)) == np.dtype(dtype)
    write(tmp_path / "ours", DOCUMENTS, vocab_size)
    write_with_megatron(tmp_path / "theirs", [[document] for document in DOCUMENTS], dtype)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_a_file_of_the_dataset_stands_for_its_prefix(tmp_path: Path) -> None:
    write(tmp_path / "ours", DOCUMENTS)
    for suffix in ("", ".bin", ".idx"):
        assert IndexedDataset(tmp_path / f"ours{suffix}").num_documents == len(DOCUMENTS)
        names = ["ours.bin", "ours.idx", "ours.json"]
        assert [path.name for path in dataset_files(tmp_path / f"ours{suffix}")] == names


def test_megatron_opens_ours(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset as MegatronDataset

    write(tmp_path / "d", DOCUMENTS, vocab_size=70_000, sidecar=True)
    logging.getLogger("megatron").setLevel(logging.ERROR)
    theirs = MegatronDataset(str(tmp_path / "d"))
    assert [theirs[number].tolist() for number in range(len(theirs))] == DOCUMENTS
    assert theirs.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert theirs.sequence_lengths.tolist() == [len(document) for document in DOCUMENTS]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8])
def test_we_open_megatrons(tmp_path: Path, dtype: type) -> None:
    documents = [[[1, 2], [3]], [[4, 5, 6]], [], [[7], [8], [9, 10]]]  # several sequences, and none
    write_with_megatron(tmp_path / "d", documents, dtype)
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.num_documents == len(dataset) == 4
    assert [dataset.document(n).tolist() for n in range(4)] == [[1, 2, 3], [4, 5, 6], [], [7, 8, 9, 10]]
    assert dataset.document_lengths.tolist() == [3, 3, 0, 4]
    assert (dataset.num_tokens, dataset.max_token_id(), dataset.dtype) == (10, 10, np.dtype(dtype))
    assert dataset.sidecar is None
    assert dataset.fingerprint is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 99_999), min_size=1, max_size=20), min_size=1, max_size=20), st.booleans())
def test_what_is_written_is_read(tmp_path: Path, documents: list[list[int]], small: bool) -> None:
    documents = [[token_id % 65_500 if small else token_id for token_id in document] for document in documents]
    prefix = tmp_path / "d"
    for path in tmp_path.iterdir():
        path.unlink()
    write(prefix, documents, 65_499 if small else 100_000)
    dataset = IndexedDataset(prefix)
    assert [dataset.document(number).tolist() for number in range(len(dataset))] == documents
    assert dataset.max_token_id() == max(map(max, documents))


def test_the_index_is_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "whole", DOCUMENTS)
    monkeypatch.setattr("megagpt.data.indexed_writer.BLOCK_ENTRIES", 3)
    write(tmp_path / "chunks", DOCUMENTS)
    assert (tmp_path / "whole.idx").read_bytes() == (tmp_path / "chunks.idx").read_bytes()
    monkeypatch.setattr("megagpt.data.indexed._SCAN_TOKENS", 7)
    assert IndexedDataset(tmp_path / "chunks").max_token_id() == 99


def test_the_sidecar_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "d", DOCUMENTS, sidecar=True)
    dataset = IndexedDataset(f"{tmp_path}/d.idx")
    assert dataset.sidecar is not None
    assert dataset.fingerprint == "f" * 64
    assert dataset.sidecar.sources == SOURCES
    assert dataset.sidecar.shards == (SHARD,)
    assert dataset.sidecar.skipped == {"not JSON": 2}
    assert dataset.sidecar.num_characters == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.bin", "d.idx", "d.json"]


def test_a_sidecar_of_version_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    old = {
        "tokenizer_kind": "sentencepiece",
        "fingerprint": "f" * 64,
        "vocab_size": 1000,
        "eod_id": 1,
        "max_token_id": 65,
        "num_documents": 4,
        "num_tokens": 107,
        "text_bytes": 10,
        "sources": [{"path": "a.jsonl", "size_bytes": 12}],
        "skipped": {"not JSON": 2},
        "format_version": 1,
    }
    path.write_text(json.dumps(old))
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert (sidecar.format_version, sidecar.num_characters, sidecar.shards) == (1, 0, ())
    assert sidecar.sources == (Source("a.jsonl", 12, 0, 0, 0, 0),)
    assert (sidecar.num_tokens, sidecar.skipped) == (107, {"not JSON": 2})


def damage(path: Path, change: str) -> None:
    content = path.read_bytes()
    if change == "cut":
        path.write_bytes(content[:-1])
    elif change == "grow":
        path.write_bytes(content + b"\0\0")
    elif change == "missing":
        path.unlink()
    elif change == "head":
        path.write_bytes(content[:20])
    elif change == "magic":
        path.write_bytes(b"MMIDIDX2" + content[8:])
    elif change == "version":
        path.write_bytes(content[:9] + b"\2" + content[10:])
    elif change == "dtype":
        path.write_bytes(content[:17] + b"\7" + content[18:])
    elif change == "pointers":  # the second sequence's byte offset
        path.write_bytes(content[: 34 + 16 + 8] + b"\1" + content[34 + 16 + 9 :])
    elif change == "bounds":  # the second document's first sequence
        path.write_bytes(content[: 34 + 16 + 32 + 8] + b"\7" + content[34 + 16 + 32 + 9 :])
    else:
        path.write_bytes(change.encode())


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".bin", "cut", r"d.bin is truncated: d.idx describes 214 bytes, the file has 213; copy both files again"),
        (".bin", "grow", r"d.bin is longer than its index says: d.idx describes 214 bytes, the file has 216"),
        (".bin", "missing", r"dataset file .*d.bin does not exist; build it with .*data.path"),
        (".idx", "missing", r"dataset file .*d.idx does not exist"),
        (".idx", "cut", r"d.idx is truncated: its header describes 122 bytes, the file has 121"),
        (".idx", "head", r"d.idx is truncated within its header"),
        (".idx", "magic", r"d.idx is not a Megatron index: it begins with b'MMIDIDX2"),
        (".idx", "version", r"d.idx has version 2 and id type 8"),
        (".idx", "dtype", r"d.idx has version 1 and id type 7; .* integer types"),
        (".idx", "pointers", r"d.idx is damaged: its sequences do not follow one another in d.bin"),
        (".idx", "bounds", r"d.idx is damaged: its documents are not in order"),
        (".json", "{", r"d.json is damaged \(Expecting property name"),
        (".json", "{}", r"d.json is damaged \('format_version'\)"),
        (".json", "[1]", r"d.json is damaged \("),
        (".json", '{"format_version": 9}', rf"d.json has format version 9; this program reads 1 to {FORMAT_VERSION}"),
        (".json", '{"format_version": 2, "sources": [], "shards": [], "new": 1}', r"d.json is damaged \(.*'new'"),
    ],
)
def test_damage_is_found_on_opening(tmp_path: Path, suffix: str, change: str, message: str) -> None:
    write(tmp_path / "d", DOCUMENTS, sidecar=True)
    damage(tmp_path / f"d{suffix}", change)
    with pytest.raises(DataError, match=message):
        IndexedDataset(tmp_path / "d")


def test_a_sidecar_of_another_dataset(tmp_path: Path) -> None:
    write(tmp_path / "d", DOCUMENTS, sidecar=True)
    content = json.loads((tmp_path / "d.json").read_text())
    (tmp_path / "d.json").write_text(json.dumps({**content, "num_tokens": 5}))
    with pytest.raises(DataError, match=r"d.json belongs to another dataset: .* 4 documents and 5 tokens, .* 107"):
        IndexedDataset(tmp_path / "d")
    (tmp_path / "d.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"d.json is damaged \(.*codec"):
        IndexedDataset(tmp_path / "d")


def test_a_dataset_without_tokens(tmp_path: Path) -> None:
    write_with_megatron(tmp_path / "d", [], np.int32)
    with pytest.raises(DataError, match=r"d has no tokens; build it from a corpus with text"):
        IndexedDataset(tmp_path / "d")


def test_what_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    write(tmp_path / "d", DOCUMENTS)
    with pytest.raises(DataError, match=r"d.bin exists; choose another output, or replace it with --overwrite"):
        IndexedWriter(tmp_path / "d", np.dtype(np.uint16))
    with IndexedWriter(tmp_path / "d", np.dtype(np.uint16), overwrite=True) as writer:
        writer.add_documents(np.array([9]), [1])
        assert IndexedDataset(tmp_path / "d").num_documents == 4, "the old one is whole until the new one is"
        writer.finish()
    assert IndexedDataset(tmp_path / "d").document(0).tolist() == [9]


def test_stopped_while_replacing_no_old_index_describes_new_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "d", DOCUMENTS, sidecar=True)
    real_replace = os.replace
    with IndexedWriter(tmp_path / "d", np.dtype(np.uint16), overwrite=True) as writer:
        writer.add_documents(np.array([9]), [1])
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    assert os.listdir(tmp_path) == ["d.bin"]
    monkeypatch.setattr(os, "replace", real_replace)
    with IndexedWriter(tmp_path / "d", np.dtype(np.uint16), overwrite=True) as writer:
        writer.add_documents(np.array([9]), [1])
        writer.finish()
    assert IndexedDataset(tmp_path / "d").sidecar is None, "nor an old sidecar"


def test_an_abandoned_dataset_leaves_nothing(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "d", np.dtype(np.uint16)) as writer:
        writer.add_documents(np.array([9]), [1])
        assert sorted(os.listdir(tmp_path)) == ["d.bin.partial", "d.idx.partial"]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_build_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "d.bin.partial").write_bytes(b"rest of a build that was killed")
    write(tmp_path / "d", DOCUMENTS)
    assert IndexedDataset(tmp_path / "d").document(0).tolist() == DOCUMENTS[0]


def test_two_writers_of_one_dataset(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "d", np.dtype(np.uint16)) as first:
        with pytest.raises(DataError, match=r"another process is writing .*d.bin now; wait for it"):
            IndexedWriter(tmp_path / "d", np.dtype(np.uint16))
        first.add_documents(np.array([9]), [1])
        first.finish()
    assert IndexedDataset(tmp_path / "d").num_tokens == 1


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    with pytest.raises(DataError, match=r"cannot write .*file/d.bin.partial: .*; choose another output"):
        IndexedWriter(tmp_path / "file" / "d", np.dtype(np.uint16))


def test_a_full_disk_before_the_first_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fix = "No space left on device; free space on its disk, or choose another output"
    with monkeypatch.context() as patch:
        patch.setattr("megagpt.data.dataset_output.open", full, raising=False)
        with pytest.raises(DataError, match=rf"cannot write .*d\.idx\.partial: {fix}"):
            IndexedWriter(tmp_path / "d", np.dtype(np.uint16))
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", full)
        with pytest.raises(DataError, match=rf"cannot write {tmp_path}/temporary file: {fix}"):
            IndexedWriter(tmp_path / "d", np.dtype(np.uint16))
    assert list(tmp_path.iterdir()) == []


def test_a_document_beyond_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megagpt.data.indexed_writer.MAX_DOCUMENT_TOKENS", 5)
    with IndexedWriter(tmp_path / "d", np.dtype(np.uint16)) as writer:
        writer.add_documents(np.arange(3), [3])
        with pytest.raises(DataError, match=r"document 2 has 6 tokens; Megatron's format holds 5 in a document"):
            writer.add_documents(np.arange(8), [2, 6])
    assert not os.listdir(tmp_path)


def test_ids_that_do_not_fit_are_our_mistake(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "d", np.dtype(np.uint16)) as writer, pytest.raises(AssertionError):
        writer.add_documents(np.array([65_536]), [1])
