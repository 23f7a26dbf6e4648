"""Where the Chinese recipe cannot write: the error names the disk or folder, the fix, and what is kept."""

import errno
import os
from pathlib import Path

import pytest
from datatrove.data import Document
from datatrove.pipeline.writers import JsonlWriter

from megagpt.data.chinese_steps import TaskWriter
from megagpt.data.recipe_plan import held
from megagpt.errors import DataError


@pytest.mark.parametrize("step", ["write", "close"])
def test_a_full_disk_while_text_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JsonlWriter, step, full)
    writer = TaskWriter(tmp_path / "text")
    with pytest.raises(
        DataError,
        match=r"no space is left on the disk of .*/text; free space there or choose a folder on another disk "
        r"\(the tasks that are done are kept: the same command, run again, goes on after them\)",
    ):
        list(writer.run(iter([Document(text="天地", id="a")]), 0, 1))


def test_a_work_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"cannot write .*/file/work: Not a directory; choose another --work folder"),
        held(tmp_path / "file" / "work"),
    ):
        pass

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    message = r"cannot write .*/work: No space left on device; free space on its disk, or choose another --work folder"
    with pytest.raises(DataError, match=message), held(tmp_path / "work"):
        pass
