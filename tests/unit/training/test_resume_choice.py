"""Which checkpoint is taken: the newest that is whole, each damaged one named; and what each policy refuses."""

import os
import sys
from pathlib import Path

import pytest

from megagpt.checkpoint.manifest import Manifest
from megagpt.checkpoint.read import read_manifest
from megagpt.cli import main
from megagpt.config_file import load_config
from megagpt.errors import CheckpointError, ConfigError, DamagedCheckpointError
from megagpt.training.resume_choice import PassedOver, ResumeChoice, choose_checkpoint, describe_damage
from tests.unit.checkpoint.samples import sample_manifest


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Manifests of steps 10, 20 and 30; `latest` names the last."""
    for step in (10, 20, 30):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        (folder / "manifest.json").write_text(sample_manifest(step).to_json())
    (tmp_path / "latest").write_text("step-00000030\n")
    return tmp_path


def choose(checkpoints: Path, policy: str = "auto", damaged: tuple[PassedOver, ...] = ()) -> ResumeChoice:
    return choose_checkpoint(load_config(None, [f"--checkpoint.resume={policy}"]), checkpoints, read_manifest, damaged)


def step_of(choice: ResumeChoice) -> int | None:
    return choice.checkpoint[1].step if choice.checkpoint else None


def test_the_latest_is_taken(checkpoints):
    for policy in ("auto", "latest"):
        choice = choose(checkpoints, policy)
        assert (step_of(choice), choice.damaged) == (30, ())
        assert choice.checkpoint[0] == checkpoints / "step-00000030"


def test_no_checkpoint(tmp_path):
    for checkpoints in (tmp_path, tmp_path / "nowhere"):
        assert choose(checkpoints) == ResumeChoice(None, ())
        assert choose(checkpoints, "never") == ResumeChoice(None, ())
        with pytest.raises(CheckpointError, match=r'resume = "latest" \(command line\), but there is no .*latest; use'):
            choose(checkpoints, "latest")


def test_a_damaged_one_is_named_and_the_next_older_is_taken(checkpoints):
    (checkpoints / "step-00000030" / "manifest.json").write_text("{")
    choice = choose(checkpoints)
    assert step_of(choice) == 20
    assert [passed.folder.name for passed in choice.damaged] == ["step-00000030"]
    assert describe_damage(choice.damaged)[0].startswith("checkpoint step-00000030 is passed over: ")
    assert "manifest.json is not a checkpoint manifest" in describe_damage(choice.damaged)[0]
    with pytest.raises(DamagedCheckpointError, match=r"step-00000030/manifest\.json is not a checkpoint manifest"):
        choose(checkpoints, "latest")


def test_one_that_was_found_damaged_later(checkpoints):
    known = (PassedOver(checkpoints / "step-00000030", "its hash differs"),)
    choice = choose(checkpoints, damaged=known)
    assert (step_of(choice), choice.damaged) == (20, known)


def test_all_damaged(checkpoints):
    for step in (10, 30):
        (checkpoints / f"step-{step:08d}" / "manifest.json").unlink()
    known = (PassedOver(checkpoints / "step-00000020", "its hash differs"),)
    with pytest.raises(CheckpointError) as raised:
        choose(checkpoints, damaged=known)
    message = str(raised.value)
    assert message.startswith(f"every checkpoint in {checkpoints} is damaged: ")
    for part in ("step-00000020: its hash differs", "step-00000030: ", "step-00000010: ", "manifest.json is missing"):
        assert part in message
    assert not isinstance(raised.value, DamagedCheckpointError)


@pytest.mark.parametrize("name", ["step-00000031", "stap-00000030", "step-0000003\x00", "", "step-00000\xff30", "st/p"])
def test_a_flipped_byte_in_latest(checkpoints, name):
    (checkpoints / "latest").write_bytes(name.encode("latin-1"))
    choice = choose(checkpoints)
    assert step_of(choice) == 30
    assert len(choice.damaged) == 1
    with pytest.raises(DamagedCheckpointError, match=r"latest names .*, which is not there|is not a whole checkpoint"):
        choose(checkpoints, "latest")


def test_a_missing_latest(checkpoints):
    (checkpoints / "latest").unlink()
    assert step_of(choose(checkpoints)) == 30
    with pytest.raises(ConfigError, match=r"holds a checkpoint \(step-00000030\)"):
        choose(checkpoints, "never")


def test_who_turned_latest_back_does_not_get_newer_ones(checkpoints):
    (checkpoints / "latest").write_text("step-00000020\n")
    assert step_of(choose(checkpoints)) == 20
    (checkpoints / "step-00000020" / "manifest.json").unlink()
    assert step_of(choose(checkpoints)) == 10
    (checkpoints / "step-00000010" / "manifest.json").unlink()
    assert step_of(choose(checkpoints)) == 30, "rather than none"


def test_one_of_another_run_is_not_passed_over(checkpoints):
    def check(folder: Path) -> Manifest:
        raise CheckpointError(f"the run cannot continue from {folder}")

    with pytest.raises(CheckpointError, match=r"cannot continue from .*step-00000030$"):
        choose_checkpoint(load_config(None, []), checkpoints, check)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="drops rights in a child process")
@pytest.mark.parametrize("path", [".", "step-00000030", "step-00000030/manifest.json", "latest"])
def test_without_rights(checkpoints, path):
    """As another user, since root may read everything."""
    for parent in list(checkpoints.parents)[:-2]:
        parent.chmod(0o755)
    (checkpoints / path).chmod(0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            choose(checkpoints)
            message = "no error"
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(writer, message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    message = os.read(reader, 4096).decode()
    (checkpoints / path).chmod(0o755)
    assert message.startswith("CheckpointError: "), (message, sys.version)
    assert "may not be read by this user; give it the rights" in message


def test_the_short_form_on_the_command_line(checkpoints, capsys):
    assert main(["train", "gpt3-base", "--resume", "sometimes"]) == 2
    assert "checkpoint.resume = 'sometimes' (command line)" in capsys.readouterr().err.replace('"', "'")
    assert main(["train", "gpt3-base", "--resume"]) == 2
    assert "--resume: expected one argument; see megagpt train --help" in capsys.readouterr().err
