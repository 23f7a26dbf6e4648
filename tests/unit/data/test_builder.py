"""Building a dataset: the ids are the tokenizer's, all or nothing, and the commands that do it."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megagpt.data import builder
from megagpt.data.builder import BuildProgress, build_dataset
from megagpt.data.cli import VERBS
from megagpt.data.indexed import IndexedDataset
from megagpt.data.indexed_writer import IndexedWriter
from megagpt.data.tool import run_tool
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import toy_texts

TEXTS = [*toy_texts(30, seed=5), "", "literal <|endoftext|> and <s>", "▁😀"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def test_each_document_is_its_ids_and_the_end(
    tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer
) -> None:
    report = build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)
    dataset = IndexedDataset(tmp_path / "d")
    kept = [text for text in TEXTS if text]
    expected = [[*toy_tokenizer.encode(text), toy_tokenizer.eod_id] for text in kept]
    assert [dataset.document(number).tolist() for number in range(len(dataset))] == expected
    assert all(ids.count(toy_tokenizer.eod_id) == 1 for ids in expected)
    assert report.num_documents == len(kept)
    assert report.num_tokens == sum(map(len, expected)) == dataset.num_tokens
    assert report.text_bytes == sum(len(text.encode()) for text in kept)
    assert report.num_characters == sum(map(len, kept))
    assert report.skipped == {"empty text": 1}
    assert (report.dtype, report.bin_bytes) == ("uint16", 2 * report.num_tokens)
    assert any("1 skipped: empty text; first: " in line and "c.jsonl:31" in line for line in report.lines())
    sidecar = dataset.sidecar
    assert sidecar is not None
    assert (sidecar.fingerprint, sidecar.tokenizer_kind) == (toy_tokenizer.fingerprint, "sentencepiece")
    assert (sidecar.vocab_size, sidecar.eod_id) == (toy_tokenizer.vocab_size, 1)
    assert sidecar.max_token_id == max(map(max, expected)) == dataset.max_token_id()
    assert (sidecar.num_documents, sidecar.text_bytes) == (len(kept), report.text_bytes)
    assert [(source.path, source.size_bytes) for source in sidecar.sources] == [(str(corpus), corpus.stat().st_size)]
    assert sidecar.skipped == {"empty text": 1}


def test_the_output_does_not_depend_on_threads_or_batches(
    tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_dataset([str(corpus)], tmp_path / "a", toy_tokenizer)
    build_dataset([str(corpus)], tmp_path / "b", toy_tokenizer, workers=3)
    monkeypatch.setattr(builder, "_BATCH_TEXT_BYTES", 50)
    seen: list[BuildProgress] = []
    build_dataset([str(corpus)], tmp_path / "c", toy_tokenizer, on_progress=seen.append)
    for suffix in (".bin", ".idx", ".json"):
        contents = {(tmp_path / f"{name}{suffix}").read_bytes() for name in "abc"}
        assert len(contents) == 1
    assert len(seen) > 5
    assert [p.num_documents for p in seen] == sorted({p.num_documents for p in seen})
    assert seen[-1].input_bytes_read == seen[-1].input_bytes == corpus.stat().st_size
    assert seen[-1].num_documents == len(TEXTS) - 1


def test_a_bad_line_leaves_no_dataset(tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    with corpus.open("a") as stream:
        stream.write("oops\n")
    with pytest.raises(DataError, match=r"c.jsonl:34: the line is not JSON"):
        build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl"]
    report = build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer, on_error="skip")
    assert report.skipped == {"empty text": 1, "not JSON": 1}


def test_documents_without_text(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match=r"every document of the corpus .*c.jsonl is empty; check --text-key"):
        build_dataset([str(path)], tmp_path / "d", toy_tokenizer)
    path.write_text("")
    with pytest.raises(DataError, match=r"the corpus .*c.jsonl has no document that can be read"):
        build_dataset([str(path)], tmp_path / "d", toy_tokenizer)


def test_an_existing_output_is_refused(tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)
    with pytest.raises(DataError, match=r"d.bin exists; choose another output, or replace it with --overwrite"):
        build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)
    build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer, overwrite=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a Linux device")
def test_a_full_disk(tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    (tmp_path / "d.bin.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"no space is left on the disk of .*d.bin after 0.0 MB; about 0.0 MB are"):
        build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl"]


def test_a_disk_that_fills_half_way(
    tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten million tokens from half of the input fit, so forty MB are needed."""

    def fill(writer: IndexedWriter, *_: object) -> None:
        writer.num_tokens = 10_000_000
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(builder, "_add_batch", fill)
    monkeypatch.setattr(builder.ReadReport, "stored_bytes_read", corpus.stat().st_size / 2)
    with pytest.raises(DataError, match=r"after 20.0 MB; about 40.0 MB are needed in all: free space there or choose"):
        build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)
    monkeypatch.setattr(builder.ReadReport, "stored_bytes_read", 0)
    with pytest.raises(DataError, match=r"after 20.0 MB; how much is needed in all is not known"):
        build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)


def test_large_vocabularies_take_4_bytes(tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    class Large:
        kind, path, vocab_size, eod_id, fingerprint = "sentencepiece", "x.model", 65_500, 65_499, "f" * 64
        encode, decode, encode_batch = toy_tokenizer.encode, toy_tokenizer.decode, toy_tokenizer.encode_batch

    build_dataset([str(corpus)], tmp_path / "d", Large())
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.dtype == np.int32
    assert dataset.max_token_id() == 65_499


def test_the_commands(
    tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = str(tmp_path / "d")
    build = [str(corpus), "--output", prefix, "--tokenizer", toy_tokenizer.path, "--workers", "2"]
    assert run_tool(VERBS["build"], build) == 0
    assert "documents      32" in capsys.readouterr().out
    assert run_tool(VERBS["build"], build) == 2
    assert "error: " in capsys.readouterr().err
    assert run_tool(VERBS["build"], [*build, "--overwrite"]) == 0
    assert run_tool(VERBS["build"], [*build[:2], prefix + "2", *build[3:], "--text-key", "body"]) == 2
    assert "there is no key 'body'; the keys are: 'text'" in capsys.readouterr().err
    assert run_tool(VERBS["inspect"], [prefix, "--tokenizer", toy_tokenizer.path, "--document", "30"]) == 0
    shown = capsys.readouterr().out
    for part in ("literal <|endoftext|> and <s>", "documents      32", toy_tokenizer.fingerprint, "100.0%", "yes"):
        assert part in shown
    assert run_tool(VERBS["inspect"], [prefix]) == 0
    assert " ".join(map(str, IndexedDataset(prefix).document(0))) in capsys.readouterr().out
    assert run_tool(VERBS["inspect"], [prefix, "--document", "32"]) == 2
    assert "document 32 does not exist in" in capsys.readouterr().err
    os.unlink(prefix + ".json")
    assert run_tool(VERBS["inspect"], [prefix]) == 0
    assert "unknown: there is no .json" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_tool(VERBS["build"], [*build, "--workers", "0"])


def test_the_data_side_never_imports_torch() -> None:
    """A corpus is prepared on machines without GPUs, where importing torch would be most of the time."""
    program = "import sys, megagpt.data.cli, megagpt.tokenizer.cli, megagpt.data.samples, megagpt.data.check\n"
    program += "import megagpt.data.entropy\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
