"""A build that was stopped goes on to the same bytes, or says what has changed; what is damaged is found."""

import errno
import gzip
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from megagpt.data import build_finish, shard_writer
from megagpt.data.builder import BuildReport, build_dataset
from megagpt.data.indexed import IndexedDataset
from megagpt.data.journal import Committed, Journal
from megagpt.data.sidecar import read_sidecar
from megagpt.data.sources import Sizes
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import toy_texts

SIZES = Sizes(chunk_bytes=500, long_line_bytes=2000)
BAD = b"oops\n"


def lines(count: int, seed: int) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in toy_texts(count, seed))


class Builds:
    """Builds in a folder with small chunks and shards; `notes` is what the last one said."""

    def __init__(self, folder: Path, tokenizer: SentencePieceTokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.notes: list[str] = []
        self.a, self.b = folder / "a.jsonl", folder / "b.jsonl"
        self.a.write_bytes(lines(12, 1))
        self.b.write_bytes(lines(20, 2) + BAD + lines(20, 3))

    def build(self, *inputs: Path | str, output: str = "d", **options: object) -> BuildReport:
        self.notes = []
        options = {"tokenizer": self.tokenizer, "workers": 2, "on_note": self.notes.append, **options}
        return build_dataset(
            [str(path) for path in inputs or (self.a, self.b)],
            self.folder / output,
            sizes=SIZES,
            shard_bytes=2500,
            **options,  # type: ignore[arg-type]
        )

    def stop(self, **options: object) -> None:
        """A build that stops at the bad line of b, several shards later than a's end."""
        with pytest.raises(DataError, match=r"b.jsonl:21: the line is not JSON.*\d+ documents in \d+ shards are kept"):
            self.build(**options)
        assert self.partial("bin").exists()

    def repair(self, new: bytes = b'{"text": "repaired"}\n') -> None:
        self.b.write_bytes(self.b.read_bytes().replace(BAD, new))

    def partial(self, kind: str) -> Path:
        return self.folder / f"d.{kind}.partial"

    def expect_same_as_fresh(self, *inputs: Path | str, **options: object) -> None:
        """The dataset is the bytes of one that was built without a stop, and nothing else is left."""
        self.build(*inputs, output="fresh", **options)
        for suffix in (".bin", ".idx", ".json"):
            found = (self.folder / f"d{suffix}").read_bytes()
            assert found == (self.folder / f"fresh{suffix}").read_bytes(), suffix
        left = [name for name in os.listdir(self.folder) if "partial" in name or "journal" in name]
        assert left == []
        IndexedDataset(self.folder / "d")


@pytest.fixture
def builds(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> Builds:
    return Builds(tmp_path, toy_tokenizer)


@pytest.mark.parametrize("new", [b'{"text": "repaired"}\n', b"", b"    \n"])
def test_a_repaired_line(builds: Builds, new: bytes) -> None:
    """Its file has another size then, or only another time of change; what was read of it is compared."""
    builds.stop()
    builds.repair(new)
    report = builds.build()
    assert report.kept_shards >= 3
    assert 0 < report.input_bytes_read < builds.a.stat().st_size + builds.b.stat().st_size
    assert any("going on with the build of" in note for note in builds.notes)
    builds.expect_same_as_fresh()


def test_skipping_after_all(builds: Builds) -> None:
    """What --on-error raise has committed is what skip would have."""
    builds.stop()
    report = builds.build(on_error="skip")
    assert report.kept_shards >= 3
    assert report.skipped_lines == [f"1 skipped: not JSON; first: {report.skipped_lines[0].split('first: ')[1]}"]
    assert "b.jsonl:21: the line is not JSON" in report.skipped_lines[0]
    builds.expect_same_as_fresh(on_error="skip")


def test_no_longer_skipping(builds: Builds) -> None:
    builds.a.write_bytes(b'{"text": ""}\n' + lines(12, 1))
    later = builds.b.read_bytes() + b"[]\n"
    builds.b.write_bytes(later)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            builds.build(builds.a, on_error="skip")
    builds.build(builds.a, on_error="raise")  # an empty text is left out either way
    builds.build(builds.a, output="fresh")
    assert (builds.folder / "d.json").read_bytes() == (builds.folder / "fresh.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            builds.build(builds.b, output="e", on_error="skip")
    with pytest.raises(DataError, match=r"--on-error skip and has left documents out \(not JSON\), which --on-error"):
        builds.build(builds.b, output="e", on_error="raise")


def stop_after(patch: pytest.MonkeyPatch, shards: int) -> None:
    """Interrupt a build once it has committed so many shards."""
    recorder = shard_writer._Recorder
    real, done = recorder._record, []

    def record(self: shard_writer._Recorder, waiting: list[Committed]) -> None:
        for shard in waiting:
            if len(done) == shards:
                raise KeyboardInterrupt
            done.append(shard)
            real(self, [shard])

    patch.setattr(recorder, "_record", record)


def test_an_interrupt(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.repair()
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            builds.build()
    assert any("interrupted; " in note and "in 2 shards are kept: the same command" in note for note in builds.notes)
    assert builds.build().kept_shards == 2
    builds.expect_same_as_fresh()


def test_an_interrupt_before_the_first_commit(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        builds.build()
    assert builds.notes[-1] == "interrupted; nothing was kept"
    assert sorted(os.listdir(builds.folder)) == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("step", range(12))
def test_stopped_at_every_step_of_the_end(builds: Builds, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Each file operation of publishing in turn is the last one, with an old dataset in the place."""
    builds.build(builds.a)
    builds.repair()
    left = step

    def counted(real: Callable) -> Callable:
        def call(*arguments: object, **named: object) -> object:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(build_finish.os, "replace", counted(os.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr("megagpt.data.builder.write_sidecar", counted(build_finish.write_sidecar))
        try:
            builds.build(overwrite=True)
            assert step >= 9, "all steps were counted"
        except KeyboardInterrupt:
            idx = builds.folder / "d.idx"
            if idx.exists():  # then it is a whole dataset, the old or the new one
                IndexedDataset(builds.folder / "d")
            assert (builds.folder / "d.journal").exists()
            (builds.folder / "d.spool.partial").mkdir(exist_ok=True)
            patch.undo()
            kept = builds.build(overwrite=True).kept_shards
            assert (kept > 3) if step >= 4 else (kept == 0), "the first steps clear what is there"
    builds.expect_same_as_fresh()


def other_tokenizer(builds: Builds, **change: object) -> SimpleNamespace:
    names = ("kind", "path", "vocab_size", "eod_id", "fingerprint", "encode", "decode", "encode_batch")
    return SimpleNamespace(**{**{name: getattr(builds.tokenizer, name) for name in names}, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tokenizer": {"fingerprint": "0" * 64}},
            r"another tokenizer \(sentencepiece, sha256 .*, 00000000.*\)",
        ),
        ({"tokenizer": {"kind": "huggingface"}}, r"another tokenizer \(sentencepiece, sha256 .* now huggingface"),
        ({"tokenizer": {"eod_id": 5}}, r"end-of-document id 1; the tokenizer now has 340 and 5"),
        ({"text_key": "body"}, r"--text-key 'text', now it is 'body'"),
    ],
)
def test_another_request(builds: Builds, options: dict, message: str) -> None:
    builds.stop()
    before = {path.name: path.read_bytes() for path in builds.folder.iterdir()}
    if "tokenizer" in options:
        options = {"tokenizer": other_tokenizer(builds, **options["tokenizer"])}
    with pytest.raises(DataError, match=rf"the unfinished build of .*d was begun with .*{message}.*--restart"):
        builds.build(**options)
    assert {path.name: path.read_bytes() for path in builds.folder.iterdir()} == before, "nothing is touched"


def test_other_inputs(builds: Builds) -> None:
    builds.stop()
    c = builds.folder / "c.jsonl"
    c.write_bytes(lines(3, 3))
    for inputs, message in [
        ((builds.a, builds.b, c), r"without .*c.jsonl; use"),
        ((builds.a,), r"with .*b.jsonl; use"),
        ((c, builds.b), r"without .*c.jsonl and with .*a.jsonl; use"),
        ((builds.b, builds.a), r"the same files in another order; use"),
    ]:
        with pytest.raises(DataError, match=rf"was begun with other inputs: {message} the same to go on.*--restart"):
            builds.build(*inputs)


def touch(path: Path, content: bytes) -> None:
    """Change a file in place, with another time of change whatever the clock's resolution."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 10_000_000, before + 10_000_000))


def test_a_changed_input_of_the_same_size(builds: Builds) -> None:
    builds.stop()
    content = builds.a.read_bytes()
    touch(builds.a, content.replace(b"2024", b"2025", 1))
    with pytest.raises(DataError, match=r"a.jsonl has changed where the unfinished build has read it .*restart"):
        builds.build()
    touch(builds.a, content)
    builds.repair()
    builds.build()
    builds.expect_same_as_fresh()


def test_a_changed_input_that_was_read_in_part(builds: Builds) -> None:
    builds.stop()
    content = builds.b.read_bytes()
    touch(builds.b, b" " + content)
    with pytest.raises(DataError, match=r"b.jsonl has changed where the unfinished build has read it already \(from 0"):
        builds.build()
    touch(builds.b, content[:300])
    with pytest.raises(DataError, match=r"b.jsonl has changed where the unfinished build has read it already \(from 0"):
        builds.build()
    builds.build(restart=True, on_error="skip")
    builds.expect_same_as_fresh(on_error="skip")


def test_an_input_that_grew_after_all_of_it_was_read(builds: Builds) -> None:
    builds.stop()
    touch(builds.a, builds.a.read_bytes() + lines(1, 9))
    with pytest.raises(DataError, match=r"a.jsonl has other content at its end than .* all of it; put the old file"):
        builds.build()


def test_the_last_input_may_grow(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.repair()
    with monkeypatch.context() as patch:
        patch.setattr("megagpt.data.builder.write_sidecar", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            builds.build()
    touch(builds.b, builds.b.read_bytes() + lines(5, 9))
    builds.build()
    assert IndexedDataset(builds.folder / "d").num_documents == 58
    builds.expect_same_as_fresh()


def test_the_only_shard_is_made_anew_where_its_input_has_changed(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input is one line, and so a single shard, which the input's end closed."""
    builds.a.write_bytes(lines(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr("megagpt.data.builder.write_sidecar", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            builds.build(builds.a)
    touch(builds.a, lines(2, 2))
    assert builds.build(builds.a).kept_shards == 0
    builds.expect_same_as_fresh(builds.a)


@pytest.mark.parametrize("kind", ["bin", "lengths"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_committed_bytes(builds: Builds, kind: str, damage: str) -> None:
    builds.stop()
    path = builds.partial(kind)
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    elif damage == "cut":
        path.write_bytes(content[:20])
    else:
        path.unlink()
    found = (
        "which an unfinished build wrote, is gone" if damage == "remove" else r"is damaged: bytes \d+ to \d+ are not"
    )
    with pytest.raises(DataError, match=rf"d.{kind}.partial.? {found}.*start over with --restart"):
        builds.build()
    builds.repair()
    builds.build(restart=True)
    builds.expect_same_as_fresh()


def test_what_was_written_beyond_the_last_commit_is_cut_off(builds: Builds) -> None:
    builds.stop()
    for kind in ("bin", "lengths"):
        with builds.partial(kind).open("ab") as stream:
            stream.write(b"\7" * 1001)
    (builds.folder / "d.journal").open("ab").write(b'{"hash": "torn')
    builds.repair()
    builds.build()
    builds.expect_same_as_fresh()


def test_a_finished_dataset_is_not_taken_for_an_unfinished_one(builds: Builds) -> None:
    builds.build(builds.a)
    with pytest.raises(DataError, match=r"d.bin exists; choose another output, or replace it with --overwrite"):
        builds.build(builds.a)
    builds.stop(overwrite=True)
    with pytest.raises(DataError, match=r"d.bin exists; choose another output, or replace it with --overwrite"):
        builds.build()
    assert (builds.folder / "d.journal").exists()
    assert IndexedDataset(builds.folder / "d").num_documents == 12, "the old one is whole until the new one is"


def test_two_builders(builds: Builds) -> None:
    builds.stop()
    with (
        Journal(builds.folder / "d.journal"),
        pytest.raises(DataError, match=r"another process is writing .*d.bin now; wait for it"),
    ):
        builds.build()
    builds.repair()
    builds.build()
    builds.expect_same_as_fresh()


def test_an_input_that_changes_while_it_is_read(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.repair()
    real = build_finish.write_index_of

    def change(*arguments: object) -> int:
        touch(builds.a, builds.a.read_bytes())
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("megagpt.data.builder.write_index_of", change)
        with pytest.raises(DataError, match=r"a.jsonl has changed while it was read; run the same command again"):
            builds.build()
    assert builds.build().engine is not None
    builds.expect_same_as_fresh()


def test_a_write_that_fails_in_the_background(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.repair()
    calls: list[int] = []

    def fail(file: int) -> None:
        calls.append(file)
        if len(calls) == 9:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.os, "fdatasync", fail)
        with pytest.raises(DataError, match=r"building .*d failed: .*Input/output error; .* shards are kept"):
            builds.build()
    assert builds.build().kept_shards >= 2
    builds.expect_same_as_fresh()


def test_shards_that_wait_are_committed_together(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk does not put the journal further and further behind what is written."""
    builds.repair()
    sizes: list[int] = []
    real = shard_writer._Recorder._record

    def slow(self: shard_writer._Recorder, waiting: list[Committed]) -> None:
        time.sleep(0.05)
        sizes.append(len(waiting))
        real(self, waiting)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer._Recorder, "_record", slow)
        report = builds.build()
    assert sum(sizes) == report.num_shards
    assert 1 < max(sizes) <= 5, "no more than may wait, and the one that is taken"
    builds.expect_same_as_fresh()


class Stdin(io.BytesIO):
    """Standard input that is this."""

    @property
    def buffer(self) -> io.BytesIO:
        return self


def test_standard_input_is_read_again_and_compared(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    content = builds.b.read_bytes()
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    with pytest.raises(DataError, match=r"standard input:21: the line is not JSON.* documents in \d shards are kept"):
        builds.build(builds.a, "-")
    changed = content.replace(b"2024", b"2025", 1)
    monkeypatch.setattr(sys, "stdin", Stdin(changed))
    with pytest.raises(DataError, match=r"standard input has changed where the unfinished build has read it already"):
        builds.build(builds.a, "-")
    repaired = content.replace(BAD, b'{"text": "repaired"}\n')
    monkeypatch.setattr(sys, "stdin", Stdin(repaired))
    assert builds.build(builds.a, "-").kept_shards >= 3
    monkeypatch.setattr(sys, "stdin", Stdin(repaired))
    builds.expect_same_as_fresh(builds.a, "-")


def test_a_damaged_file_that_is_skipped(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rest stays out, also when the build goes on after it."""
    damaged = builds.folder / "c.jsonl.gz"
    damaged.write_bytes(gzip.compress(lines(30, 4))[:-300])
    inputs = (damaged, builds.a)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            builds.build(*inputs, on_error="skip")
    assert builds.build(*inputs, on_error="skip").skipped == {"damaged gzip file": 1}
    builds.expect_same_as_fresh(*inputs, on_error="skip")
    with pytest.raises(DataError, match=r"c.jsonl.gz: the gzip data is truncated or damaged after line"):
        builds.build(*inputs, output="e")


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
