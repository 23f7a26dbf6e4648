"""The datatrove step that writes our format: what is in a part, what a task that fails leaves, and what is counted."""

import errno
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor

from megagpt.data import datatrove_writer
from megagpt.data.datatrove_writer import IndexedDatasetWriter
from megagpt.data.indexed import IndexedDataset, dataset_files
from megagpt.data.parts import task_prefix
from megagpt.data.sidecar import Sidecar, read_sidecar
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import toy_texts


def documents(texts: list[str], path: str = "a.jsonl") -> list[Document]:
    return [Document(text, f"{path}:{number}", metadata={"file_path": path}) for number, text in enumerate(texts)]


def write(prefix: Path, tokenizer: SentencePieceTokenizer, texts: list[str], rank: int = 0, num_tasks: int = 1) -> Path:
    """One task by hand; its part's prefix."""
    writer = IndexedDatasetWriter(prefix, tokenizer.path)
    assert [document.text for document in writer.run(iter(documents(texts)), rank, num_tasks)] == texts
    return Path(task_prefix(str(prefix), rank, num_tasks))


def sidecar_of(prefix: Path) -> Sidecar:
    sidecar = read_sidecar(dataset_files(prefix)[2])
    assert sidecar is not None
    return sidecar


def test_a_part_holds_the_ids_of_its_documents_in_their_order(
    tmp_path: Path, toy_tokenizer: SentencePieceTokenizer
) -> None:
    texts = toy_texts(50, seed=3)
    part = write(tmp_path / "new" / "data", toy_tokenizer, texts, rank=3, num_tasks=16)
    assert part.name == "data.task-00003-of-00016"
    dataset = IndexedDataset(part)
    expected = [[*toy_tokenizer.encode(text), toy_tokenizer.eod_id] for text in texts]
    assert [dataset.document(number).tolist() for number in range(dataset.num_documents)] == expected
    assert sorted(path.name for path in part.parent.iterdir()) == [
        f"{part.name}.{kind}" for kind in ("bin", "idx", "json")
    ]


@pytest.mark.parametrize("step", ["add_documents", "finish"])
def test_a_full_disk(
    tmp_path: Path, toy_tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(datatrove_writer.IndexedWriter, step, full)
    with pytest.raises(DataError, match=r"no space is left on the disk of .*data.task-00001-of-00002; free space"):
        write(tmp_path / "data", toy_tokenizer, toy_texts(5), rank=1, num_tasks=2)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_nothing_to_write(
    tmp_path: Path, toy_tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"cannot write .*data.task-00000-of-00001.json: No space left"):
        write(tmp_path / "data", toy_tokenizer, [])
    assert list(tmp_path.iterdir()) == []


def test_the_sidecar_counts_by_file_and_hashes_shards(
    tmp_path: Path, toy_tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datatrove_writer, "_SHARD_TEXT_BYTES", 1000)
    monkeypatch.setattr(datatrove_writer, "_BATCH_DOCUMENTS", 7)
    texts = {"a.jsonl": toy_texts(20), "b.jsonl": toy_texts(30, seed=1)}
    writer = IndexedDatasetWriter(tmp_path / "data", toy_tokenizer.path)
    given = [document for path, some in texts.items() for document in documents(some, path)]
    assert list(writer.run(iter(given))) == given
    part = task_prefix(str(tmp_path / "data"), 0, 1)
    sidecar = sidecar_of(Path(part))
    for source, (path, some) in zip(sidecar.sources, texts.items(), strict=True):
        num_tokens = sum(len(toy_tokenizer.encode(text)) + 1 for text in some)
        num_bytes = sum(len(text.encode()) for text in some)
        assert source == (type(source))(path, None, len(some), num_tokens, num_bytes, sum(map(len, some)))
    totals = (sidecar.num_documents, sidecar.num_tokens, sidecar.text_bytes, sidecar.num_characters)
    assert totals[0] == 50
    assert totals == tuple(
        sum(getattr(source, name) for source in sidecar.sources)
        for name in ("num_documents", "num_tokens", "text_bytes", "num_characters")
    )
    assert (sidecar.fingerprint, sidecar.eod_id) == (toy_tokenizer.fingerprint, toy_tokenizer.eod_id)
    content, all_text = Path(part + ".bin").read_bytes(), "".join(document.text for document in given).encode()
    ids_at = text_at = 0
    for shard in sidecar.shards:
        num_bytes = shard.num_tokens * 2
        assert shard.hash == xxhash.xxh3_128_hexdigest(content[ids_at : ids_at + num_bytes])
        assert shard.input_hash == xxhash.xxh3_128_hexdigest(all_text[text_at : text_at + shard.text_bytes])
        ids_at, text_at = ids_at + num_bytes, text_at + shard.text_bytes
    assert (ids_at, text_at) == (len(content), len(all_text))
    assert len(sidecar.shards) > 3
    places = [
        (shard.first_source, shard.first_position, shard.last_source, shard.last_position) for shard in sidecar.shards
    ]
    assert places[0][:2] == (0, 0)
    assert places[-1][2:] == (1, 30)
    counted = {name: writer.stats[name].total for name in ("tokens", "characters", "bytes")}
    assert counted == {"tokens": totals[1], "characters": totals[3], "bytes": totals[2]}


def test_a_document_without_text_is_counted_and_left_out(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    part = write(tmp_path / "data", toy_tokenizer, ["天下", "", "大势", ""])
    assert IndexedDataset(part).num_documents == 2
    assert sidecar_of(part).skipped == {"empty text": 2}


def test_a_task_without_documents_leaves_only_a_sidecar_even_where_a_part_was(
    tmp_path: Path, toy_tokenizer: SentencePieceTokenizer
) -> None:
    write(tmp_path / "data", toy_tokenizer, ["天下"], rank=1, num_tasks=2)
    part = write(tmp_path / "data", toy_tokenizer, [], rank=1, num_tasks=2)
    assert [path.name for path in tmp_path.iterdir()] == [f"{part.name}.json"]
    assert (sidecar_of(part).num_documents, sidecar_of(part).max_token_id) == (0, -1)


class FailsOnce:
    """A step that breaks in its second document as long as a file is there."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __call__(self, data: Iterator[Document], rank: int, world_size: int) -> Iterator[Document]:
        for number, document in enumerate(data):
            if rank == 1 and number == 1 and self.flag.exists():
                raise ValueError("broken on purpose")
            yield document


def deal(data: None, rank: int, world_size: int) -> Iterator[Document]:
    yield from documents(toy_texts(40)[rank::world_size], path=f"{rank}.jsonl")


def test_datatrove_runs_a_failed_task_again_and_no_finished_one(
    tmp_path: Path, toy_tokenizer: SentencePieceTokenizer
) -> None:
    prefix, flag = tmp_path / "data", tmp_path / "flag"
    flag.touch()

    def run() -> None:
        writer = IndexedDatasetWriter(prefix, toy_tokenizer.path)
        pipeline = [deal, FailsOnce(flag), writer]
        LocalPipelineExecutor(pipeline, tasks=3, workers=1, logging_dir=str(tmp_path / "logs")).run()

    with pytest.raises(ValueError, match="broken on purpose"):
        run()
    assert sorted(path.name for path in tmp_path.glob("data*")) == [
        f"data.task-00000-of-00003.{kind}" for kind in ("bin", "idx", "json")
    ]
    flag.unlink()
    before = (tmp_path / "data.task-00000-of-00003.idx").stat().st_mtime_ns
    run()
    assert (tmp_path / "data.task-00000-of-00003.idx").stat().st_mtime_ns == before
    for rank in range(3):
        dataset = IndexedDataset(task_prefix(str(prefix), rank, 3))
        decoded = [toy_tokenizer.decode(dataset.document(number)) for number in range(dataset.num_documents)]
        assert decoded == toy_texts(40)[rank::3]
    stats = json.loads((tmp_path / "logs" / "stats" / "00001.json").read_text())[-1]["stats"]
    assert stats["tokens"]["total"] == IndexedDataset(task_prefix(str(prefix), 1, 3)).num_tokens


def test_two_tasks_do_not_write_one_part(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    first = IndexedDatasetWriter(tmp_path / "data", toy_tokenizer.path).run(iter(documents(["天下"])))
    next(first)
    with pytest.raises(DataError, match="another process is writing"):
        write(tmp_path / "data", toy_tokenizer, ["大势"])
    assert list(first) == []
    assert IndexedDataset(task_prefix(str(tmp_path / "data"), 0, 1)).num_documents == 1


@pytest.mark.parametrize(
    ("output", "tokenizer", "message"),
    [
        ("s3://bucket/data", None, "output s3://bucket/data is not a path"),
        ("data", "missing.model", "tokenizer file missing.model does not exist"),
    ],
)
def test_wrong_arguments_are_errors_before_anything_runs(
    output: str, tokenizer: str | None, message: str, toy_tokenizer: SentencePieceTokenizer
) -> None:
    with pytest.raises(DataError, match=message):
        IndexedDatasetWriter(output, tokenizer or toy_tokenizer.path)


def test_a_lone_surrogate_names_its_document(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(DataError, match=r"document a.jsonl:1 has a lone surrogate U\+D800 at character 2"):
        write(tmp_path / "data", toy_tokenizer, ["天下", "大势\ud800"])
    assert list(tmp_path.iterdir()) == []


def test_without_datatrove_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("megagpt.data.datatrove_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datatrove.data", None)
    with pytest.raises(DataError, match=r"needs datatrove.*pip install 'megagpt\[clean\]'"):
        importlib.import_module("megagpt.data.datatrove_writer")


def test_parts_do_not_depend_on_batches(
    tmp_path: Path, toy_tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "one", toy_tokenizer, toy_texts(30))
    monkeypatch.setattr(datatrove_writer, "_BATCH_TEXT_BYTES", 50)
    second = write(tmp_path / "two", toy_tokenizer, toy_texts(30))
    for kind in ("bin", "idx", "json"):
        assert Path(f"{first}.{kind}").read_bytes() == Path(f"{second}.{kind}").read_bytes()
    assert np.fromfile(f"{first}.bin", dtype=np.uint16).size == sidecar_of(first).num_tokens
