"""A run that could not write its folder, or keep a checkpoint there, is refused before it starts."""

import shutil
from pathlib import Path

import pytest

from megagpt.config_file import load_config
from megagpt.errors import CheckpointError, ConfigError
from megagpt.plan import make_plan
from megagpt.training.run_folder import check_nvme_folder, check_run_folder
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, run_arguments, train_rank


def check(folder: Path, *arguments: str) -> None:
    loaded = load_config(None, ["--model.vocab_size=256", f"--run.folder={folder}", *arguments])
    check_run_folder(loaded, make_plan(loaded, 1, None))


def test_nothing_is_left(tmp_path: Path) -> None:
    check(tmp_path / "new" / "run")
    check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("kept")
    for place in ("run", "run/deeper"):
        message = rf'run\.folder = ".*/{place}" \(command line\) cannot be written: .*; choose another folder'
        with pytest.raises(ConfigError, match=message):
            check(tmp_path / place)
    assert (tmp_path / "run").read_text() == "kept"


def test_a_folder_of_the_system_that_takes_no_files_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'run\.folder = "/proc/run" \(command line\) cannot be written'):
        check(Path("/proc/run"))


def test_a_disk_without_room_for_a_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = r"a checkpoint of this run needs [\d,]+ MiB, and run\.folder = .* has 5 MiB free; free space there"
    with pytest.raises(CheckpointError, match=message):
        check(tmp_path)
    check(tmp_path, "--model.num_layers=1", "--model.hidden_size=24", "--model.sequence_length=64")


@pytest.mark.parametrize(("precision", "zero_stage"), [("fp32", 0), ("fp32", 1), ("fp32", 3), ("bf16", 1), ("fp16", 2)])
def test_the_room_is_what_a_checkpoint_takes(tmp_path: Path, precision: str, zero_stage: int) -> None:
    make_data(tmp_path)
    options = [f"--train.precision={precision}", f"--parallel.zero_stage={zero_stage}"]
    arguments = run_arguments(tmp_path, "--train.steps=2", *options)
    run_ranks(1, train_rank, arguments)
    needed = make_plan(load_config(None, arguments), 1, 400).checkpoint_bytes
    saved = tmp_path / "run" / "checkpoints" / "step-00000002"
    written = sum(path.stat().st_size for path in saved.iterdir() if path.suffix in (".pt", ".safetensors"))
    assert needed == pytest.approx(written, rel=0.05), "the rest is names and headers"


def check_nvme(folder: Path) -> None:
    arguments = ["--model.vocab_size=256", "--parallel.zero_stage=3", "--parallel.offload_parameters=nvme"]
    loaded = load_config(None, [*arguments, f"--parallel.nvme_folder={folder}"])
    check_nvme_folder(loaded, make_plan(loaded, 1, None))


def test_a_folder_for_parameters_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match=r'parallel\.nvme_folder = ".*/file" \(command line\) cannot be written'):
        check_nvme(tmp_path / "file")


def test_a_disk_without_room_for_parameters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = r"the parameters of 1 ranks need \d+ MiB, and 5 MiB are free; free space there, choose another folder"
    with pytest.raises(ConfigError, match=message):
        check_nvme(tmp_path)


def test_file_access_that_cannot_be_built_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    for possible in (True, False):
        monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose=False, now=possible: now)
        if possible:
            check_nvme(tmp_path)
        else:
            with pytest.raises(ConfigError, match=r"needs libaio and a C\+\+ compiler; install them"):
                check_nvme(tmp_path)
