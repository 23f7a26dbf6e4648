"""A build that was stopped, however it was, goes on to the same bytes."""

import errno
import gzip
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megagpt.data import build_finish, shard_writer
from megagpt.data.build_input import Reading, with_sample, work
from megagpt.data.corpus import corpus_files
from megagpt.data.indexed import IndexedDataset
from megagpt.data.journal import Committed, Journal
from megagpt.data.sources import Sizes, assign_ranges
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.builds import BAD, Builds, lines, stop_after


@pytest.fixture
def builds(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> Builds:
    return Builds(tmp_path, toy_tokenizer)


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


def test_what_was_written_beyond_the_last_commit_is_cut_off(builds: Builds) -> None:
    builds.stop()
    for kind in ("bin", "lengths"):
        with builds.partial(kind).open("ab") as stream:
            stream.write(b"\7" * 1001)
    (builds.folder / "d.journal").open("ab").write(b'{"hash": "torn')
    builds.repair()
    builds.build()
    builds.expect_same_as_fresh()


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


def test_a_write_that_fails_in_the_background(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.repair()
    calls: list[int] = []

    def fail(file: int) -> None:
        calls.append(file)
        if len(calls) == 9:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.os, "fdatasync", fail)
        with pytest.raises(
            DataError, match=r"building .*d failed: .*Input/output error; check the disks .*; .* shards are kept"
        ):
            builds.build()
    assert builds.build().kept_shards >= 2
    builds.expect_same_as_fresh()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


FULL = r"no space is left on the disk of .*d.bin after "


@pytest.mark.parametrize("step", ["journal.Journal.append", "builder.flush_folder"])
def test_a_disk_that_is_full_at_the_start(builds: Builds, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(f"megagpt.data.{step}", full)
    with pytest.raises(DataError, match=FULL + r".* \(nothing was kept\)$"):
        builds.build()
    assert sorted(os.listdir(builds.folder)) == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("step", ["journal.Journal.append", "builder.publish"])
def test_a_disk_that_is_full_when_a_build_goes_on(builds: Builds, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    builds.stop()
    builds.repair()
    with monkeypatch.context() as patch:
        patch.setattr(f"megagpt.data.{step}", full)
        with pytest.raises(DataError, match=FULL + r"0.0 MB; about .*; \d+ documents in \d+ shards are kept: the same"):
            builds.build()
    assert builds.build().kept_shards >= 2
    builds.expect_same_as_fresh()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_input_that_cannot_be_read_any_more(builds: Builds, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """A disk that fails: the file, the place, and what is kept."""
    builds.repair()
    pread, size = os.pread, os.stat(builds.b).st_size
    place = size - 100

    def fail(file: int, num_bytes: int, at: int) -> bytes:
        if os.fstat(file).st_size == size and num_bytes > 100 and at <= place < at + num_bytes:
            raise OSError(errno.EIO, "Input/output error")
        return pread(file, num_bytes, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        message = r"corpus file .*b.jsonl cannot be read at byte \d+ \(Input/output error\); .* shards are kept"
        with pytest.raises(DataError, match=message):
            builds.build(workers=workers)
    builds.build()
    builds.expect_same_as_fresh()


def test_a_long_text_is_in_the_sample(builds: Builds) -> None:
    """The native core is checked on the beginning of a long text, too."""
    text = builds.folder / "t.txt"
    text.write_bytes(b"\xef\xbb\xbf" + "山\r\n".encode() * 40_000)
    files = corpus_files([str(text)])
    shares = assign_ranges(files, 0, 1)
    reading = Reading(files, shares, "text", "raise", builds.folder, Sizes(500, 2000))
    items, sample = with_sample(reading, work(reading, 0, 0, 0))
    assert [len(part) for part in sample] == [1000] * 24
    assert "".join(sample) == "山\n" * 12_000
    assert len(list(items)) == 1


def test_a_journal_that_cannot_be_read(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.stop()

    def fail(journal: Journal) -> None:
        raise OSError(errno.EIO, "Input/output error", str(journal.path))

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "read", fail)
        with pytest.raises(
            DataError, match=r"building .*d failed: .*Input/output error: .*d.journal'; check the disks"
        ):
            builds.build()
    builds.repair()
    assert builds.build().kept_shards >= 2, "it was not taken for an empty one"


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
