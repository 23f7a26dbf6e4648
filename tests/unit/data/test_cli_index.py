"""`megagpt data index`: files that training then finds, for a dataset and for a run; what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from megagpt.config_file import load_config
from megagpt.data.cli_index import VERBS
from megagpt.data.indexed import IndexedDataset
from megagpt.data.tool import run_tool
from megagpt.plan import make_plan
from megagpt.tokenizer import load_tokenizer
from megagpt.training.data import describe_data, prepare_data
from tests.parallel.runs import make_data, run_arguments
from tests.unit.data.orders import plain_split

REPOSITORY = Path(__file__).resolve().parents[3]
SPLIT = "0.9,0.1,0.0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Corpus, tokenizer, and a configuration that reads the corpus about four times."""
    make_data(tmp_path)
    (tmp_path / "x.toml").write_text(
        f'[run]\nfolder = "{tmp_path}/run"\n[model]\nnum_layers = 1\nnum_heads = 1\nhidden_size = 8\n'
        f'sequence_length = 32\n[tokenizer]\npath = "{tmp_path}/tokenizer.model"\n[data]\npath = "{tmp_path}/corpus"\n'
        "split = [0.9, 0.1, 0.0]\n[train]\nsteps = 20\nbatch_tokens = 1024\n"
    )
    return tmp_path


def indexes(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("corpus.index-").rpartition("-")[0] for path in folder.glob("corpus.index-*"))


def index(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    status = run_tool(VERBS["index"], arguments)
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def test_a_datasets_index_is_found_by_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = index(capsys, f"{folder}/corpus", "--split", SPLIT, "--always", "--epochs", "2")
    assert indexes(folder) == ["train-0", "train-1", "valid-0"]
    assert said.count("built in") == 3
    num_documents = len(plain_split(len(IndexedDataset(folder / "corpus")), (0.9, 0.1, 0.0), "train"))
    assert f"{folder}/corpus: {num_documents} training documents, " in said
    assert index(capsys, f"{folder}/corpus.idx", "--split", SPLIT, "--always").count("found in") == 2

    loaded = load_config(None, run_arguments(folder))
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    plan = make_plan(loaded, 1, tokenizer.vocab_size)
    lines = describe_data(prepare_data(plan, tokenizer, None), plan)
    assert any("corpus.index-train-0-" in line and "found in" in line for line in lines), lines


def test_a_runs_epochs_are_indexed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = index(capsys, f"{folder}/x.toml", "--always", "--folder", f"{folder}/indexes")
    names = indexes(folder / "indexes")
    epochs = float(said.partition(" samples in this run, ")[2].partition(" epochs")[0])
    assert 3 < epochs < 12
    assert names == [*(f"train-{epoch}" for epoch in range(int(epochs) + 1)), "valid-0"]
    assert indexes(folder) == []
    assert f"corpus ({folder}/corpus): " in said
    said = index(capsys, f"{folder}/x.toml", "--always", "--epochs", "1", "--folder", f"{folder}/one")
    assert indexes(folder / "one") == ["train-0", "valid-0"]


def test_a_configuration_names_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "x.toml").read_text()
    (folder / "x.toml").write_text(text.replace("[data]\n", f'[data]\nindex_folder = "{folder}/named"\n'))
    index(capsys, f"{folder}/x.toml", "--always", "--epochs", "1")
    assert indexes(folder / "named") == ["train-0", "valid-0"]


def test_where_the_native_module_is_missing_it_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    plan = make_plan(load_config(None, run_arguments(folder)), 1, tokenizer.vocab_size)
    data = prepare_data(plan, tokenizer, None)
    for native in (True, False):
        monkeypatch.setattr("megagpt.training.data.is_native", lambda core, native=native: native)
        said = any("served by NumPy, several times slower" in line for line in describe_data(data, plan))
        assert said is not native


def test_a_small_dataset_needs_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "bytes need no file: made in" in index(capsys, f"{folder}/corpus", "--split", SPLIT)
    assert indexes(folder) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/none"], r"error: {}/none: no such configuration file"),
        (
            ["{}/x.toml", "--seed", "3"],
            r"error: --split and --seed are for a dataset, and there is no {}/x.toml.idx; the",
        ),
        (
            ["{}/corpus", "--split", "1,0"],
            r"error: --split 1,0 must be three numbers from 0 to 1, such as 0.98,0.01,0.01",
        ),
        (["{}/corpus", "--split", "0.5,0.4,0.3"], r"error: data.split = [0.5, 0.4, 0.3] must be three shares"),
        (["gpt3-base"], r"error: gpt3-base names no tokenizer.path or no data.path, so it has no batches"),
    ],
)
def test_what_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    said = index(capsys, *(argument.replace("{}", str(folder)) for argument in arguments))
    assert message.replace("{}", str(folder)) in said


def test_the_script_and_the_command_are_the_same(folder: Path) -> None:
    script = [sys.executable, str(REPOSITORY / "data_tools" / "index_dataset.py")]
    command = [sys.executable, "-m", "megagpt", "data", "index"]
    for words in (script, command):
        done = subprocess.run([*words, f"{folder}/x.toml"], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "training documents" in done.stdout
