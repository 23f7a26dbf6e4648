"""Building a dataset: the ids are the tokenizer's, all or nothing, and the commands that do it."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash

from megagpt.data import builder
from megagpt.data.build_report import Written, disk_full
from megagpt.data.builder import BuildProgress, build_dataset
from megagpt.data.cli import VERBS
from megagpt.data.encoders import Encoded, Engine
from megagpt.data.encoders_library import LibraryEncoder
from megagpt.data.indexed import IndexedDataset
from megagpt.data.sidecar import Source
from megagpt.data.sources import Payload, Sizes
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
    assert "shards         1" in report.lines()
    assert "encoder        native, 1 thread" in report.lines() or report.engine != "native"
    assert any("1 skipped: empty text; first: " in line and "c.jsonl:31" in line for line in report.lines())
    sidecar = dataset.sidecar
    assert sidecar is not None
    assert (sidecar.fingerprint, sidecar.tokenizer_kind) == (toy_tokenizer.fingerprint, "sentencepiece")
    assert (sidecar.vocab_size, sidecar.eod_id) == (toy_tokenizer.vocab_size, 1)
    assert sidecar.max_token_id == max(map(max, expected)) == dataset.max_token_id()
    assert (sidecar.num_documents, sidecar.text_bytes) == (len(kept), report.text_bytes)
    assert [(source.path, source.size_bytes) for source in sidecar.sources] == [(str(corpus), corpus.stat().st_size)]
    assert sidecar.skipped == {"empty text": 1}


SMALL = Sizes(chunk_bytes=500, long_line_bytes=2000)


def test_the_output_does_not_depend_on_threads_or_encoders(
    tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer
) -> None:
    build_dataset([str(corpus)], tmp_path / "a", toy_tokenizer, sizes=SMALL, shard_bytes=6000)
    build_dataset([str(corpus)], tmp_path / "b", toy_tokenizer, workers=3, sizes=SMALL, shard_bytes=6000)
    notes: list[str] = []
    slower = build_dataset(
        [str(corpus)],
        tmp_path / "c",
        toy_tokenizer,
        native=False,
        on_note=notes.append,
        sizes=SMALL,
        shard_bytes=6000,
    )
    for suffix in (".bin", ".idx", ".json"):
        contents = {(tmp_path / f"{name}{suffix}").read_bytes() for name in "abc"}
        assert len(contents) == 1
    assert any("warning: this build is slower than it could be" in note for note in notes)
    assert (slower.engine, slower.engine_note is not None) == ("sentencepiece", True)
    assert any(line.startswith("warning        slower than it could be: ") for line in slower.lines())
    whole = build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "d.bin").read_bytes()
    assert (whole.num_shards, slower.num_shards) == (1, 4)


def test_the_shards_are_runs_of_the_input_and_of_the_ids(
    tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer
) -> None:
    """Two inputs: shards follow one another in both, and their hashes are those of their bytes."""
    second = tmp_path / "e.jsonl"
    second.write_bytes(b'{"text": "second"}\n' * 40)
    build_dataset([str(corpus), str(second)], tmp_path / "d", toy_tokenizer, sizes=SMALL, shard_bytes=6000)
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.sidecar is not None
    shards, content = dataset.sidecar.shards, (tmp_path / "d.bin").read_bytes()
    assert len(shards) >= 3
    position, begin = (0, 0), 0
    for shard in shards:
        assert (shard.first_source, shard.first_position) in (position, (position[0] + 1, 0))
        position = (shard.last_source, shard.last_position)
        stop = begin + shard.num_tokens * dataset.dtype.itemsize
        assert shard.hash == xxhash.xxh3_128_hexdigest(content[begin:stop])
        begin = stop
    assert (position, begin) == ((1, second.stat().st_size), len(content))
    for name in ("num_documents", "num_tokens", "text_bytes"):
        in_shards = sum(getattr(shard, name) for shard in shards)
        assert in_shards == sum(getattr(source, name) for source in dataset.sidecar.sources)
        assert in_shards == getattr(dataset.sidecar, name)
    assert dataset.sidecar.sources[1] == Source(str(second), 760, 40, dataset.sidecar.sources[1].num_tokens, 240, 240)


def test_progress(tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    class Slow:
        def encode(self, payload: Payload) -> Encoded:
            time.sleep(0.03)
            return LibraryEncoder(toy_tokenizer, np.dtype(np.uint16), "text").encode(payload)

    seen: list[BuildProgress] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "make_engine", lambda *_, **__: Engine("slow", None, Slow))
        build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer, on_progress=seen.append, sizes=SMALL)
    assert len(seen) > 2
    assert [p.num_documents for p in seen] == sorted(p.num_documents for p in seen)
    assert [p.input_bytes_read for p in seen] == sorted(p.input_bytes_read for p in seen)
    assert 0 < seen[1].input_bytes_read < corpus.stat().st_size
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


def test_a_full_disk(
    tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("megagpt.data.shard_writer.write_all", full)
        with pytest.raises(
            DataError, match=r"no space is left on the disk of .*d.bin after 0.0 MB; .* \(nothing was kept\)"
        ):
            build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr("megagpt.data.builder.write_index_of", full)
        with pytest.raises(DataError, match=r"documents in 1 shard are kept: the same command, run again, goes on"):
            build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer)
    notes: list[str] = []
    report = build_dataset([str(corpus)], tmp_path / "d", toy_tokenizer, on_note=notes.append)
    assert (report.num_documents, report.kept_documents, report.kept_shards) == (32, 32, 1)
    assert any("going on with the build of" in note and "32 documents in 1 shard" in note for note in notes)
    assert "already there  32 documents in 1 shard, from before" in report.lines()


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(40, 40)])
@pytest.mark.parametrize("native", [True, False])
def test_a_document_with_too_many_tokens(
    tmp_path: Path,
    toy_tokenizer: SentencePieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    sizes: Sizes,
    native: bool,
) -> None:
    """Megatron's lengths are int32; the line is named, in a chunk with others and where it is a long one."""
    texts = ["a", "", "a", "long " * 100, "a"]
    (tmp_path / "c.jsonl").write_text("\n" + "".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setattr("megagpt.data.build_input.MAX_DOCUMENT_TOKENS", 50)
    message = r"c.jsonl:5: the document has \d{3} tokens; Megatron's format holds .*: split it"
    with pytest.raises(DataError, match=message):
        build_dataset([str(tmp_path / "c.jsonl")], tmp_path / "d", toy_tokenizer, sizes=sizes, native=native)


def test_what_a_full_disk_would_need() -> None:
    """Ten million tokens from half of the input fit, so forty MB are needed."""
    message = str(disk_full("d", Written(0, 20_000_000), 500, 1000, "; 5 documents are kept"))
    assert "after 20.0 MB; about 40.0 MB are needed in all: free space there or choose" in message
    assert message.endswith("; 5 documents are kept")
    message = str(disk_full("d", Written(1_000_000, 0), 500, 1000, ""))
    assert "about 48.0 MB are needed in all" in message, "the index counts"
    assert "how much is needed in all is not known" in str(disk_full("d", Written(0, 20_000_000), 0, 1000, ""))
    assert "how much is needed in all is not known" in str(disk_full("d", Written(0, 20_000_000), 500, None, ""))


def test_large_vocabularies_take_4_bytes(tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    class Large:
        kind, path, vocab_size, eod_id, fingerprint = "sentencepiece", "x.model", 65_500, 65_499, "f" * 64
        encode, decode, encode_batch = toy_tokenizer.encode, toy_tokenizer.decode, toy_tokenizer.encode_batch

    build_dataset([str(corpus)], tmp_path / "d", Large(), native=False, on_note=lambda _: None)
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
    with pytest.raises(SystemExit):
        run_tool(VERBS["build"], [*build, "--workers", "0"])


def test_the_options_of_the_command(
    tmp_path: Path, corpus: Path, toy_tokenizer: SentencePieceTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(prefix: str, *options: str) -> tuple[int, str, str]:
        status = run_tool(
            VERBS["build"],
            [str(corpus), "--output", str(tmp_path / prefix), "--tokenizer", toy_tokenizer.path, *options],
        )
        return (status, *capsys.readouterr())

    status, shown, said = run("d")
    assert (status, said) == (0, "")
    assert f"encoder        native, {len(os.sched_getaffinity(0))} threads" in shown
    status, shown, said = run("e", "--no-native", "--workers", "1")
    assert "encoder        sentencepiece, 1 thread" in shown
    assert "warning: this build is slower than it could be: the native encoder is switched off" in said
    status, shown, said = run("t", "--task", "1", "--num-tasks", "2")
    assert f"dataset        {tmp_path}/t.task-00001-of-00002.bin, .idx, .json" in shown
    assert run("t", "--task", "2", "--num-tasks", "2")[0] == 2
    Path(f"{tmp_path}/f.journal").write_text("x\n" * 3)
    status, shown, said = run("f")
    assert (status, "f.journal:1 is damaged" in said) == (2, True)
    assert run("f", "--restart")[0] == 0
    assert (tmp_path / "f.json").read_bytes() == (tmp_path / "d.json").read_bytes()


def test_starting_is_cheap() -> None:
    """What takes long to import is imported where it is needed."""
    program = "import sys, megagpt.data.cli_build\nslow = {'rich', 'pydantic', 'pyarrow', 'zstandard', 'datasets', "
    program += (
        "'tokenizers', 'sentencepiece', 'jieba', 'torch'}\nassert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_data_side_never_imports_torch() -> None:
    """A corpus is prepared on machines without GPUs, where importing torch would be most of the time."""
    program = "import sys, megagpt.data.cli, megagpt.tokenizer.cli, megagpt.data.samples, megagpt.data.check\n"
    program += "import megagpt.data.entropy\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_memory_of_a_build_of_one_line(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    """A document of 60 MB; the build is a process of its own."""
    pytest.importorskip("megagpt.native._encoder", reason="without the native core a document is held whole")
    text = "".join(toy_texts(200, seed=1)).replace("\n", " ")
    part = json.dumps(text, ensure_ascii=False)[1:-1].encode()
    with open(tmp_path / "c.jsonl", "wb") as stream:
        stream.write(b'{"text": "' + part * (60_000_000 // len(part) + 1) + b'"}\n{"text": "short"}\n')
    program = (
        "import re, sys\n"
        "from megagpt.cli import main\n"
        "assert main(['data', 'build', *sys.argv[1:]]) == 0\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1], file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "c.jsonl"), "--output", str(tmp_path / "d")]
    command += ["--tokenizer", toy_tokenizer.path, "--workers", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "documents      2\n" in done.stdout
    assert "encoder        native" in done.stdout
    assert int(done.stderr.split()[-1]) / 1024 < 200, "MiB"  # measured: 55; 1257 without the native core
