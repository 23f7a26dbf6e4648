"""Shares of a corpus for tasks, documents too long for memory, and odd file names."""

import json
import os
from pathlib import Path

import pytest

from megagpt.data.indexed import IndexedDataset
from megagpt.data.sidecar import read_sidecar
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.builds import BAD, Builds, lines
from tests.unit.tokenizer.toy import toy_texts


@pytest.fixture
def builds(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> Builds:
    return Builds(tmp_path, toy_tokenizer)


def test_long_lines_and_long_texts(builds: Builds) -> None:
    """Documents beyond `long_line_bytes` go through files of their own, and are the same documents."""
    text = "".join(toy_texts(40, 7))
    builds.a.write_bytes(lines(3, 1) + json.dumps({"text": text}).encode() + b"\n" + lines(3, 2))
    plain = builds.folder / "long.txt"
    plain.write_text(text)
    inputs = (builds.a, plain, builds.b)
    with pytest.raises(DataError, match=r"b.jsonl:21: the line is not JSON"):
        builds.build(*inputs)
    builds.repair()
    builds.build(*inputs)
    dataset = IndexedDataset(builds.folder / "d")
    expected = [*builds.tokenizer.encode(text), builds.tokenizer.eod_id]
    assert dataset.document(3).tolist() == dataset.document(7).tolist() == expected
    builds.expect_same_as_fresh(*inputs)
    builds.build(*inputs, output="library", native=False)
    assert (builds.folder / "library.json").read_bytes() == (builds.folder / "d.json").read_bytes()


def test_file_names_that_are_not_utf8(builds: Builds) -> None:
    name = os.fsdecode(b"\xff.jsonl")
    (builds.folder / name).write_bytes(builds.b.read_bytes())
    inputs = (builds.a, builds.folder / name)
    with pytest.raises(DataError, match=r":21: the line is not JSON"):
        builds.build(*inputs)
    builds.build(*inputs, on_error="skip")
    sidecar = IndexedDataset(builds.folder / "d").sidecar
    assert sidecar is not None
    assert sidecar.sources[1].path == str(builds.folder / name)


def test_tasks(builds: Builds) -> None:
    """Each task resumes for itself; what came from a file says so, in the file's own positions."""
    builds.repair()
    builds.build(output="whole")
    whole = IndexedDataset(builds.folder / "whole")
    content = b""
    for task in range(3):
        report = builds.build(output="t", task=task, num_tasks=3)
        prefix = builds.folder / f"t.task-0000{task}-of-00003"
        assert report.prefix == str(prefix)
        sidecar = IndexedDataset(prefix).sidecar
        assert sidecar is not None
        assert sidecar.num_documents == sum(source.num_documents for source in sidecar.sources) > 0
        assert all(source.path in (str(builds.a), str(builds.b)) for source in sidecar.sources)
        content += prefix.with_name(prefix.name + ".bin").read_bytes()
    assert content == (builds.folder / "whole.bin").read_bytes()
    assert whole.num_documents == 53
    with pytest.raises(DataError, match=r"task 3 of 3 tasks does not exist; tasks are numbered from 0 to 2"):
        builds.build(output="t", task=3, num_tasks=3)


def test_a_task_without_a_document(builds: Builds) -> None:
    """It writes a sidecar alone, also in the place of an old part."""
    builds.a.write_bytes(lines(1, 1))
    report = builds.build(builds.a, output="t", task=1, num_tasks=4)
    prefix = builds.folder / "t.task-00001-of-00004"
    assert report.lines() == [f"dataset        {prefix}.json alone: there is no document in this share"]
    assert sorted(os.listdir(builds.folder)) == ["a.jsonl", "b.jsonl", "t.task-00001-of-00004.json"]
    sidecar = read_sidecar(Path(f"{prefix}.json"))
    assert sidecar is not None
    assert (sidecar.num_documents, sidecar.num_tokens, sidecar.max_token_id, sidecar.shards) == (0, 0, -1, ())
    assert sidecar.fingerprint == builds.tokenizer.fingerprint
    with pytest.raises(DataError, match=r"t.task-00001-of-00004.json exists; choose another output, or replace it"):
        builds.build(builds.a, output="t", task=1, num_tasks=4)
    for suffix in (".bin", ".idx"):
        Path(f"{prefix}{suffix}").write_text("old")
    builds.build(builds.a, output="t", task=1, num_tasks=4, overwrite=True)
    assert sorted(os.listdir(builds.folder)) == ["a.jsonl", "b.jsonl", "t.task-00001-of-00004.json"]


def test_a_change_that_moves_the_shares_of_all_tasks(builds: Builds) -> None:
    """Another size moves them, another line of the same size does not."""
    builds.b.write_bytes(lines(50, 2) + BAD)
    with pytest.raises(DataError, match=r"b.jsonl:51: the line is not JSON"):
        builds.build(task=1, num_tasks=2)
    builds.repair()
    with pytest.raises(DataError, match=r"b.jsonl changed, which moves the shares of all 2 tasks; start all of them"):
        builds.build(task=1, num_tasks=2)
    builds.b.write_bytes(lines(50, 2) + b"    \n")
    assert builds.build(task=1, num_tasks=2).kept_shards > 0
