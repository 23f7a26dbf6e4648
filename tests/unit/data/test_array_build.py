"""A build as an array of tasks: parts join to the whole, a finished part is kept or refused, a merge may be stopped."""

import errno
import gzip
import json
import os
from pathlib import Path

import pytest

from megagpt.data import array_build
from megagpt.data.cli_array import VERBS
from megagpt.data.cli_build import VERBS as BUILD_VERBS
from megagpt.data.tool import run_tool
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import toy_texts, train_toy

NUM_TASKS = 4
CHANGES = ["inputs", "tokenizer", "text key", "on error"]


class Array:
    """A corpus of two files, and the verbs as a scheduler calls them."""

    def __init__(self, folder: Path, tokenizer: SentencePieceTokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer.path
        rows = [json.dumps({"text": text, "body": text[:5]}, ensure_ascii=False) + "\n" for text in toy_texts(300)]
        (folder / "a.jsonl").write_text("".join(rows[:200]), encoding="utf-8")
        (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(rows[200:]).encode(), mtime=0))

    def run(self, verb: str, *options: str, output: str = "data", num_tasks: int = NUM_TASKS) -> int:
        inputs = [str(self.folder / name) for name in ("a.jsonl", "b.jsonl.gz")]
        command = [*inputs, "--output", str(self.folder / output), "--tokenizer", self.tokenizer, "--workers", "1"]
        if verb != "build":
            command += ["--num-tasks", str(num_tasks)]
        return run_tool({**VERBS, **BUILD_VERBS}[verb], [*command, *options])

    def tasks(self, *options: str, num_tasks: int = NUM_TASKS) -> list[int]:
        return [self.run("array-task", "--task", str(task), *options, num_tasks=num_tasks) for task in range(num_tasks)]

    def change(self, what: str) -> list[str]:
        """Another corpus, tokenizer or option; the arguments that say so."""
        if what == "inputs":
            touch(self.folder / "b.jsonl.gz")
        if what == "tokenizer":
            (self.folder / "other").mkdir()
            self.tokenizer = train_toy(self.folder / "other" / "tokenizer.model").path
            with open(self.tokenizer, "ab") as stream:  # a field of no meaning: another file with the same ids
                stream.write(b"\xa2\x06\x01x")
        return {"text key": ["--text-key", "body"], "on error": ["--on-error", "skip"]}.get(what, [])

    def files(self, output: str = "data") -> dict[str, bytes]:
        return {kind: (self.folder / f"{output}.{kind}").read_bytes() for kind in ("bin", "idx", "json")}

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith("data"))


@pytest.fixture
def array(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> Array:
    return Array(tmp_path, toy_tokenizer)


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 17])
def test_merged_parts_are_the_single_build_and_nothing_else_is_left(array: Array, num_tasks: int) -> None:
    array.run("build", output="whole")
    assert array.tasks(num_tasks=num_tasks) == [0] * num_tasks
    assert array.run("array-merge", num_tasks=num_tasks) == 0
    whole, merged = array.files("whole"), array.files()
    assert (merged["bin"], merged["idx"]) == (whole["bin"], whole["idx"])
    counts = [json.loads(files["json"]) for files in (whole, merged)]
    assert counts[0]["sources"] == counts[1]["sources"]
    assert array.left() == ["data.bin", "data.idx", "data.json"]


def test_a_finished_part_is_kept(array: Array, capsys: pytest.CaptureFixture[str]) -> None:
    array.tasks()
    before = (array.folder / "data.task-00001-of-00004.idx").stat().st_mtime_ns
    capsys.readouterr()
    assert array.run("array-task", "--task", "1", "--workers", "2") == 0
    assert "data.task-00001-of-00004 was built before, from the same input" in capsys.readouterr().out
    assert array.run("array-task", "--task", "1", "--overwrite") == 0
    assert (array.folder / "data.task-00001-of-00004.idx").stat().st_mtime_ns == before


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_part_of_another_request_is_refused_and_overwrite_replaces_it(
    array: Array, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    array.tasks()
    options = array.change(change)
    assert array.run("array-task", "--task", "0", *options) == 2
    error = capsys.readouterr().err
    assert f"data.task-00000-of-00004 is finished and was built with other {change}; replace the parts" in error
    before = (array.folder / "data.task-00000-of-00004.idx").stat().st_mtime_ns
    assert array.run("array-task", "--task", "0", "--overwrite", *options) == 0
    assert (array.folder / "data.task-00000-of-00004.idx").stat().st_mtime_ns > before


@pytest.mark.parametrize("change", CHANGES)
def test_a_merge_with_other_arguments_than_the_tasks_is_refused(
    array: Array, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    array.tasks()
    before, options = array.left(), array.change(change)
    assert array.run("array-merge", *options) == 2
    error = capsys.readouterr().err
    assert f"data.task-00000-of-00004 was built with other {change} than array-merge is given" in error
    assert "and so were all parts; give array-merge what the tasks were given" in error
    assert array.left() == before


@pytest.mark.parametrize("change", CHANGES)
def test_parts_that_differ_are_not_joined(array: Array, capsys: pytest.CaptureFixture[str], change: str) -> None:
    array.tasks()
    options = array.change(change)
    for task in ("0", "1", "3"):
        assert array.run("array-task", "--task", task, "--overwrite", *options) == 0
    before = array.left()
    assert array.run("array-merge", *options) == 2
    error = capsys.readouterr().err
    assert f"data.task-00002-of-00004 was built with other {change} than array-merge is given, but not all" in error
    assert "run the tasks that differ (2) again with --overwrite" in error
    assert array.left() == before
    assert array.run("array-task", "--task", "2", "--overwrite", *options) == 0
    assert array.run("array-merge", *options) == 0


def test_parts_without_a_record_are_not_joined(array: Array, capsys: pytest.CaptureFixture[str]) -> None:
    array.tasks()
    (array.folder / "data.task-00003-of-00004.request").unlink()
    assert array.run("array-merge") == 2
    assert "data.task-00003-of-00004 was built without a record of its inputs" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--task", "1"], ["--restart"], ["--no-native"]])
def test_a_merge_does_not_take_what_means_nothing_to_it(
    array: Array, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    array.tasks()
    with pytest.raises(SystemExit):
        array.run("array-merge", *option)
    assert f"unrecognized arguments: {' '.join(option)}" in capsys.readouterr().err


def test_a_part_without_a_record_is_refused(array: Array, capsys: pytest.CaptureFixture[str]) -> None:
    array.run("build", "--task", "0", "--num-tasks", "4")
    assert array.run("array-task", "--task", "0") == 2
    assert "was built without a record of its inputs" in capsys.readouterr().err


def test_a_dataset_that_exists_is_refused_before_the_work(array: Array, capsys: pytest.CaptureFixture[str]) -> None:
    array.run("build")
    old = array.files()
    assert array.run("array-task", "--task", "0") == 2
    assert "data.idx exists; choose another output, or replace it with --overwrite" in capsys.readouterr().err
    assert array.tasks("--overwrite") == [0] * NUM_TASKS
    assert array.files() == old
    assert array.run("array-merge") == 2
    assert "data.bin exists" in capsys.readouterr().err
    assert array.run("array-merge", "--overwrite") == 0
    assert array.left() == ["data.bin", "data.idx", "data.json"]


def test_a_full_disk_before_the_work(
    array: Array, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert array.run("array-task", "--task", "0") == 2
    assert "of-00004.request: No space left on device; free space on its disk" in capsys.readouterr().err
    assert array.left() == []


def test_a_missing_part_is_named_and_nothing_is_lost(array: Array, capsys: pytest.CaptureFixture[str]) -> None:
    for task in (0, 1, 3):
        array.run("array-task", "--task", str(task))
    assert array.run("array-merge") == 2
    assert "data.task-00002-of-00004.idx does not exist" in capsys.readouterr().err
    assert array.run("array-task", "--task", "2") == 0
    assert array.run("array-merge") == 0


@pytest.mark.parametrize("stopped_after", range(0, 4 * NUM_TASKS + 3, 3))
def test_a_merge_that_is_stopped_anywhere_can_be_done_again(
    array: Array, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    array.run("build", output="whole")
    array.tasks()
    calls = 0
    unlink = Path.unlink

    def stop(path: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls > stopped_after:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(array_build.Path, "unlink", stop)
        assert array.run("array-merge") == 130
    assert array.run("array-merge") == 0
    whole, merged = array.files("whole"), array.files()
    assert (merged["bin"], merged["idx"]) == (whole["bin"], whole["idx"])
    assert array.left() == ["data.bin", "data.idx", "data.json"]


def test_a_merge_stopped_before_its_marker_is_recognised(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    array.tasks()

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(array_build.Path, "touch", stop)
        assert array.run("array-merge") == 130
    assert "data.task-00000-of-00004.bin" in array.left()
    assert array.run("array-merge") == 0
    assert array.left() == ["data.bin", "data.idx", "data.json"]
