"""Which files inputs stand for: links, folders that cannot be read, what is no file, and names that say too little."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from megagpt.data.corpus import corpus_files
from megagpt.data.sources import JsonLines, assign_ranges, chunks
from megagpt.errors import DataError


def names_of(folder: Path) -> list[str]:
    return [os.path.relpath(file.path, folder) for file in corpus_files([str(folder)])]


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    corpus, other = tmp_path / "corpus", tmp_path / "other"
    for path in (corpus / "sub" / "a.txt", other / "b.txt", other / "deep" / "c.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (corpus / "linked").symlink_to(other)
    (corpus / "sub" / "up").symlink_to(corpus)
    (other / "deep" / "back").symlink_to(other)
    (corpus / "twice").symlink_to(other)
    assert names_of(corpus) == ["linked/b.txt", "linked/deep/c.txt", "sub/a.txt"]


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.txt").write_text("x")
    scandir = os.scandir

    def refuse(path: Any) -> Iterator[os.DirEntry[str]]:  # tests may run as root, whom permissions do not stop
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        DataError, match=r"^folder \S+/shut cannot be read \(Permission denied\); change its permissions, or name"
    ):
        corpus_files([str(tmp_path)])


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for given in (tmp_path, tmp_path / "*.jsonl", tmp_path / "a.jsonl"):
        with pytest.raises(DataError, match=r"^corpus file \S+/a.jsonl is a link to \S+/gone.jsonl, which does not ex"):
            corpus_files([str(given)])


@pytest.mark.timeout(20)
def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    message = r"{} is no regular file \(it is a {}\); for JSON lines from a pipe write - and pipe them in"
    for given in (tmp_path, tmp_path / "*.jsonl", tmp_path / "a.jsonl"):
        with pytest.raises(DataError, match=message.format(r"\S+/a.jsonl", "pipe")):
            corpus_files([str(given)])
    with pytest.raises(DataError, match=message.format("/dev/null", "device")):
        corpus_files(["/dev/null"])
    with (
        open(__file__) as stream,
        pytest.raises(DataError, match=r"^/dev/fd/\d+ has no name .*on standard input write -$"),
    ):
        corpus_files([f"/dev/fd/{stream.fileno()}"])
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(DataError, match=message.format(rf"/dev/fd/{read_end}", "pipe")):
            corpus_files([f"/dev/fd/{read_end}"])
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("name", ["c.json.gz", "c.json.zst"])
def test_json_lines_compressed_under_another_name(tmp_path: Path, name: str) -> None:
    lines = b'{"text": "a"}\n{"text": "b"}\n'
    packed = gzip.compress(lines) if name.endswith(".gz") else zstandard.ZstdCompressor().compress(lines)
    (tmp_path / name).write_bytes(packed)
    (tmp_path / "dataset_info.json").write_text("{}")
    files = corpus_files([str(tmp_path)])
    assert [os.path.basename(file.path) for file in files] == [name]
    (chunk,) = chunks(files[0], 0, "text", spool=tmp_path)
    assert chunk.load() == JsonLines(lines)
    assert sum(len(assign_ranges(files, task, 3)) for task in range(3)) == 1, "not cut"


def test_json_may_be_one_value(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(
        DataError,
        match=r"c.json is: a .json file may be one value; .* rename it to .jsonl, .*: jq -c '.\[\]' \S+c.json ",
    ):
        corpus_files([str(tmp_path / "c.json")])
