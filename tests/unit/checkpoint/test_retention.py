"""Which checkpoints stay, what `checkpoint verify` says of damaged ones, and what `checkpoint prune` removes."""

from pathlib import Path

import pytest

from megagpt.checkpoint.retention import latest_step, removable_steps, saved_steps
from megagpt.checkpoint.save import save_checkpoint
from megagpt.cli import main
from megagpt.parallel.mesh import Mesh
from tests.unit.checkpoint.samples import sample_contents


@pytest.fixture
def run(tmp_path: Path, mesh: Mesh) -> Path:
    """A run with checkpoints of steps 10, 20, … 60."""
    for step in range(10, 70, 10):
        save_checkpoint(tmp_path / "checkpoints", sample_contents(step), mesh, keep=10)
    return tmp_path


@pytest.mark.parametrize(
    ("keep", "every", "spared", "removed"),
    [
        (1, 0, None, [10, 20, 30, 40, 50]),
        (2, 0, None, [10, 20, 30, 40]),
        (9, 0, None, []),
        (1, 20, None, [10, 30, 50]),
        (2, 30, None, [10, 20, 40]),
        (1, 0, 20, [10, 30, 40, 50]),
    ],
)
def test_which_may_go(keep, every, spared, removed):
    assert removable_steps([60, 20, 10, 30, 40, 50], keep, every, spared) == removed


def test_a_save_keeps_the_newest_and_every_nth(tmp_path, mesh):
    for step in range(10, 70, 10):
        save_checkpoint(tmp_path, sample_contents(step), mesh, keep=1, keep_every_steps=30)
    assert saved_steps(tmp_path) == [30, 60]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000030", "step-00000060"]


def test_prune(run, capsys):
    assert main(["checkpoint", "prune", str(run), "--keep", "2", "--keep-every", "30", "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        *(f"would remove {run}/checkpoints/step-000000{step}" for step in (10, 20, 40)),
        "3 of 6 checkpoints would stay",
    ]
    assert saved_steps(run / "checkpoints") == [10, 20, 30, 40, 50, 60]
    assert main(["checkpoint", "prune", str(run), "--keep", "2", "--keep-every", "30"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 of 6 checkpoints stay"
    assert saved_steps(run / "checkpoints") == [30, 50, 60]


def test_prune_spares_what_latest_names(run):
    (run / "checkpoints" / "latest").write_text("step-00000020\n")
    assert latest_step(run / "checkpoints") == 20
    assert main(["checkpoint", "prune", str(run / "checkpoints"), "--keep", "1"]) == 0
    assert saved_steps(run / "checkpoints") == [20, 60]


def test_verify_names_each_damaged_checkpoint(run, capsys):
    assert main(["checkpoint", "verify", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.endswith("files, sizes and hashes are right") for line in lines)
    damaged = run / "checkpoints" / "step-00000030" / "weights-rank00000.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    (run / "checkpoints" / "step-00000050" / "manifest.json").unlink()
    assert main(["checkpoint", "verify", str(run)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"step-00000030: damaged: {damaged} is damaged: its hash differs" in lines[2]
    assert "step-00000050: damaged:" in lines[4]
    assert sum("right" in line for line in lines) == 4
    assert main(["checkpoint", "verify", str(damaged.parent)]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "{run}", "--keep", "0"], "'0' is not a number of 1 or more"),
        (["prune", "{run}"], "--keep"),
        (["frobnicate", "{run}"], "invalid choice: 'frobnicate'"),
    ],
)
def test_wrong_arguments(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["checkpoint", *(argument.format(run=run) for argument in arguments)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_checkpoints(tmp_path, capsys):
    for verb in (["verify"], ["prune", "--keep", "1"]):
        assert main(["checkpoint", verb[0], str(tmp_path), *verb[1:]]) == 2
        assert f"{tmp_path} holds no checkpoints: looked for step-… folders and latest" in capsys.readouterr().err
