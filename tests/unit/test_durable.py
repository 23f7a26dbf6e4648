"""Small files are whole or not there, and one that cannot be written is an error that says what to do."""

import errno
import os
from pathlib import Path

import pytest

from megagpt.durable import write_whole
from megagpt.errors import DataError


def test_a_small_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    for text in ("中", "second"):
        write_whole(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(path.parent) == ["a.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"cannot write .*a.json: No space left on device; free space on its disk, or"):
        write_whole(path, "new")
    assert os.listdir(tmp_path) == ["a.json"]
    assert path.read_text() == "old"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*file/a.json: .*; choose another output"):
        write_whole(tmp_path / "file" / "a.json", "text")
