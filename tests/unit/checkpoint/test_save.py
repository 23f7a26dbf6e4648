"""Saving in one process: what is written, in which order it comes to exist, what is kept and what is removed."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megagpt.checkpoint.file_record import check_file
from megagpt.checkpoint.load import load_share
from megagpt.checkpoint.pieces import KINDS
from megagpt.checkpoint.read import find_checkpoint, read_manifest, read_model
from megagpt.checkpoint.save import save_checkpoint
from megagpt.cli import main
from megagpt.errors import CheckpointError
from tests.unit.checkpoint.samples import sample_contents, sample_parameters

WEIGHTS, MOMENTS = "weights-rank00000.safetensors", "moments-rank00000.safetensors"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"a tokenizer")
    return path


def with_tokenizer(step: int, tokenizer: Path):
    contents = sample_contents(step)
    manifest = replace(contents.manifest, tokenizer_file="tokenizer.model", tokenizer_fingerprint="ab")
    return replace(contents, manifest=manifest, config_toml='[run]\nname = "文"\n', tokenizer_path=tokenizer)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_checkpoint_holds(tmp_path, mesh, tokenizer):
    contents = with_tokenizer(5, tokenizer)
    folder = save_checkpoint(tmp_path / "run" / "checkpoints", contents, mesh, keep=2)
    assert folder == tmp_path / "run" / "checkpoints" / "step-00000005"
    files = [
        "config.toml",
        "index.json",
        "moments-rank00000.safetensors",
        "tokenizer.model",
        "weights-rank00000.safetensors",
    ]
    assert names(folder) == sorted([*files, "manifest.json"])
    assert names(folder.parent) == ["latest", "step-00000005"]
    assert (folder.parent / "latest").read_text() == "step-00000005\n"
    assert (folder / "config.toml").read_text(encoding="utf-8") == '[run]\nname = "文"\n'
    assert (folder / "tokenizer.model").read_bytes() == b"a tokenizer"
    manifest = read_manifest(folder)
    assert replace(manifest, files={}) == contents.manifest
    assert sorted(manifest.files) == files, "every file but the manifest has its size and hash"
    for name, record in manifest.files.items():
        check_file(folder, name, record, verify_hash=True)


def test_what_was_saved_comes_back(tmp_path, mesh):
    folder = save_checkpoint(tmp_path, sample_contents(3), mesh, keep=2)
    manifest = read_manifest(folder)
    found = sample_contents(3).pieces
    for piece in found:
        for kind in KINDS:
            piece.tensor(kind).fill_(-1)
    load_share(folder, manifest, found, 1, 0, 1)
    for piece, saved in zip(found, sample_contents(3).pieces, strict=True):
        assert all(torch.equal(piece.tensor(kind), saved.tensor(kind)) for kind in KINDS)
    wanted = sample_parameters()
    assert all(torch.equal(value, wanted[name]) for name, value in read_model(tmp_path).parameters.items())


def test_ranks_that_do_not_own_all_of_it_cannot_save(tmp_path, mesh):
    """A mistake of ours: it must not become a checkpoint."""
    contents = sample_contents(3, rank=0, num_ranks=2)
    with pytest.raises(CheckpointError, match=r"holds no elements 512 to 1023 of embedding\.tokens\.weight"):
        save_checkpoint(tmp_path, contents, mesh, keep=2)
    assert names(tmp_path) == []


def test_every_file_reaches_the_disk_before_the_checkpoint_exists(tmp_path, mesh, tokenizer, monkeypatch):
    """After a power loss a renamed folder must not hold files whose contents were never written out."""
    synced: set[str] = set()
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    at_rename: list[set[str]] = []

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".writing"):
            at_rename.append(set(synced))
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    folder = save_checkpoint(tmp_path / "checkpoints", with_tokenizer(1, tokenizer), mesh, keep=2)
    assert len(at_rename) == 1
    written = {name if name != "manifest.json" else "manifest.json.tmp" for name in names(folder)}
    assert written <= at_rename[0]
    assert "latest.tmp" not in at_rename[0]


@pytest.mark.parametrize(("keep", "kept"), [(1, [5]), (2, [4, 5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_newest_are_kept(tmp_path, mesh, keep, kept):
    for step in range(1, 6):
        save_checkpoint(tmp_path, sample_contents(step), mesh, keep)
    assert names(tmp_path) == ["latest", *(f"step-{step:08d}" for step in kept)]
    assert find_checkpoint(tmp_path).name == "step-00000005"


def test_a_checkpoint_older_than_those_kept_is_not_removed_as_it_is_written(tmp_path, mesh):
    """After `latest` was turned back by hand the run writes steps below those that are there already."""
    for step in (10, 20):
        save_checkpoint(tmp_path, sample_contents(step), mesh, keep=2)
    save_checkpoint(tmp_path, sample_contents(5), mesh, keep=2)
    assert find_checkpoint(tmp_path).name == "step-00000005"
    assert read_manifest(find_checkpoint(tmp_path)).step == 5


def test_the_same_step_again_replaces_it(tmp_path, mesh):
    save_checkpoint(tmp_path, sample_contents(4), mesh, keep=3)
    again = sample_contents(4)
    next(piece for piece in again.pieces if piece.name == "final_norm.bias").master.fill_(99)
    folder = save_checkpoint(tmp_path, again, mesh, keep=3)
    assert torch.equal(read_model(folder).parameters["final_norm.bias"], torch.full((8,), 99.0))
    assert names(tmp_path) == ["latest", "step-00000004"]


def test_a_place_that_cannot_be_written(tmp_path, mesh):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(
        CheckpointError, match=r"rank 0 could not write .*step-00000001\.writing: .*; free space or give"
    ):
        save_checkpoint(tmp_path / "checkpoints", sample_contents(1), mesh, keep=1)


def test_inspect(tmp_path, mesh, tokenizer, capsys):
    folder = save_checkpoint(tmp_path / "run" / "checkpoints", with_tokenizer(1500, tokenizer), mesh, keep=2)
    assert main(["checkpoint", "inspect", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    for line in (
        f"checkpoint       {folder}",
        "progress         step 1,500, 15,000 tokens, training loss 1.5000 nats/token",
        "model            tiny: 1 layers, 2 heads, hidden 8, context 16, vocabulary 100 (padded 128), gelu_tanh",
        "layout           tensor 1 × pipeline 1 × data 1, virtual stages 1, ZeRO 1, fp32, seed 1",
        "tokenizer        tokenizer.model (sha256 ab)",
        "written by       megagpt 0.0.0, format 2",
    ):
        assert line in printed.splitlines()
    assert "file             config.toml  " in printed
    assert "verified" not in printed
    assert main(["checkpoint", "inspect", str(folder), "--verify"]) == 0
    assert "verified         5 files: sizes and hashes are right" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [WEIGHTS, MOMENTS, "index.json", "config.toml", "tokenizer.model"],
)
def test_inspect_finds_damage(tmp_path, mesh, tokenizer, capsys, name):
    folder = save_checkpoint(tmp_path / "checkpoints", with_tokenizer(1, tokenizer), mesh, keep=2)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert main(["checkpoint", "inspect", str(tmp_path / "checkpoints")]) == 0, "sizes are right"
    assert main(["checkpoint", "inspect", str(tmp_path / "checkpoints"), "--verify"]) == 2
    assert f"{name} is damaged: its hash differs" in capsys.readouterr().err
    (folder / name).unlink()
    assert main(["checkpoint", "inspect", str(tmp_path / "checkpoints")]) == 2
    assert f"{name} is missing" in capsys.readouterr().err
