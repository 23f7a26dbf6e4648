"""A checkpoint that takes another's place: whatever moment a save is killed at, `latest` names a whole one."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from megagpt.checkpoint import commit
from megagpt.checkpoint.candidates import find_candidates
from megagpt.checkpoint.read import find_checkpoint, read_model
from megagpt.checkpoint.save import save_checkpoint
from megagpt.errors import CheckpointError
from tests.unit.checkpoint.samples import sample_contents


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def contents(step: int, bias: float):
    made = sample_contents(step)
    next(piece for piece in made.pieces if piece.name == "final_norm.bias").master.fill_(bias)
    return made


def bias(path: Path) -> float:
    return float(read_model(path).parameters["final_norm.bias"][0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("moment", range(12))
def test_killed_at_any_moment_of_a_replacement(tmp_path, mesh, monkeypatch, moment):
    """`moment` renames, flushes and removals happen, then the process is gone."""
    save_checkpoint(tmp_path, contents(4, 1.0), mesh, keep=2)
    left = moment

    def counted(real):
        def call(*arguments, **options):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", counted(Path.rename))
        patched.setattr(os, "fsync", counted(os.fsync))
        patched.setattr(shutil, "rmtree", counted(shutil.rmtree))
        with contextlib.suppress(Killed):
            save_checkpoint(tmp_path, contents(4, 2.0), mesh, keep=2)
    assert bias(tmp_path) in (1.0, 2.0)
    assert bias(find_candidates(tmp_path).all[0]) in (1.0, 2.0)
    if moment == 11:
        assert left > 0 or bias(tmp_path) == 2.0
    save_checkpoint(tmp_path, contents(6, 3.0), mesh, keep=2)
    assert names(tmp_path) == ["latest", "step-00000004", "step-00000006"]
    assert bias(tmp_path) == 3.0
    assert bias(tmp_path / "step-00000004") in (1.0, 2.0)


def test_between_the_two_renames_the_old_one_is_found(tmp_path, mesh):
    save_checkpoint(tmp_path, contents(4, 1.0), mesh, keep=2)
    (tmp_path / "step-00000004").rename(tmp_path / "step-00000004.replaced")
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000004.replaced"
    assert bias(tmp_path) == 1.0
    commit.clear_leftovers(tmp_path)
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000004"


def test_leftovers_of_every_step_are_cleared(tmp_path, mesh):
    save_checkpoint(tmp_path, contents(4, 1.0), mesh, keep=2)
    for name in ("step-00000002.writing", "step-00000004.replaced", "step-00000001.removing", "notes.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    save_checkpoint(tmp_path, contents(6, 2.0), mesh, keep=2)
    assert names(tmp_path) == ["latest", "notes.writing", "step-00000004", "step-00000006"]


def test_a_failed_replacement_leaves_the_old_one(tmp_path, mesh, monkeypatch):
    save_checkpoint(tmp_path, contents(4, 1.0), mesh, keep=2)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == commit.WRITING:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CheckpointError, match="No space left on device; free space"):
        save_checkpoint(tmp_path, contents(4, 2.0), mesh, keep=2)
    assert bias(tmp_path) == 1.0
