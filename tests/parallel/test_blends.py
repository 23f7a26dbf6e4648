"""Training on several corpora: weights that change between runs, validation of each, and what is said and recorded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from megagpt.checkpoint.cli import main as checkpoint_main
from megagpt.checkpoint.read import find_checkpoint, read_manifest
from megagpt.data.builder import build_dataset
from megagpt.data.show_run import show_step
from megagpt.errors import CheckpointError
from megagpt.tokenizer import load_tokenizer
from megagpt.training.session import describe_start
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, make_poems, prepare_small, read_metrics, run_arguments, train_rank


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`corpus`, and `poems` of the same tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    make_poems(folder)
    return folder


def arguments_of(folder: Path, corpus: float, poems: float, *extra: str) -> list[str]:
    tables = [
        f'{{path = "{folder}/{name}", weight = {weight}}}'
        for name, weight in (("corpus", corpus), ("poems", poems))
        if weight
    ]
    kept = [argument for argument in run_arguments(folder) if not argument.startswith("--data.path")]
    return [*kept, f"--data.corpora=[{', '.join(tables)}]", *extra]


def copy_data(data: Path, target: Path) -> Path:
    shutil.copytree(data, target)
    return target


def started(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the run says before it starts."""
    capsys.readouterr()
    describe_start(prepare_small(arguments), Console(width=300))
    return capsys.readouterr().out


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_resumed_blend_equals_an_unbroken_one(data: Path, tmp_path: Path, num_ranks: int) -> None:
    unbroken, broken = copy_data(data, tmp_path / "unbroken"), copy_data(data, tmp_path / "broken")
    run_ranks(num_ranks, train_rank, arguments_of(unbroken, 3, 1))
    run_ranks(num_ranks, train_rank, arguments_of(broken, 3, 1, "--train.steps=4"))
    run_ranks(num_ranks, train_rank, arguments_of(broken, 3, 1))
    records = [record for record in read_metrics(broken) if record["step"] != 4 or "loss" in record]
    assert records == read_metrics(unbroken)
    at_the_end = [record for record in records if record["step"] == 6 and "validation_loss" in record]
    assert [record.get("corpus") for record in at_the_end] == ["corpus", "poems", None]
    parts, (total,) = at_the_end[:2], at_the_end[2:]
    assert total["num_tokens"] == sum(part["num_tokens"] for part in parts)
    weighted = sum(part["validation_loss"] * part["num_tokens"] for part in parts) / total["num_tokens"]
    assert total["validation_loss"] == pytest.approx(weighted, rel=1e-9)
    assert parts[0]["unigram_entropy"] != parts[1]["unigram_entropy"]


def test_weights_change_between_runs(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_data(data, tmp_path / "run")
    first = arguments_of(folder, 3, 1, "--train.steps=4")
    assert "corpus: 75 %, 24 samples by the end of the run" in started(first, capsys)
    run_ranks(1, train_rank, first)
    second = arguments_of(folder, 1, 1)
    said = started(second, capsys)
    assert "from here on corpus 50 %, poems 50 %; before: corpus 75 %, poems 25 %" in said
    assert "corpus: 50 %, 32 samples by the end of the run" in said
    blend = prepare_small(second).data.training
    assert [phase.first_sample for phase in blend.phases] == [0, 32]
    places = [blend.place_of(sample) for sample in range(48)]
    for name, count in (("corpus", 24 + 8), ("poems", 8 + 8)):
        assert [number for corpus, number in places if corpus.name == name] == list(range(count))
    run_ranks(1, train_rank, second)

    manifest = read_manifest(find_checkpoint(folder / "run"))
    assert manifest.phases == blend.phases
    checkpoint_main(["inspect", str(folder / "run")])
    inspected = capsys.readouterr().out
    assert "data             from sample 0 on corpus 75 %, poems 25 %" in inspected
    assert "data             from sample 32 on corpus 50 %, poems 50 %" in inspected
    assert f"(sample 32 from {places[32][0].name})" in show_step(str(folder / "run"), 4)
    assert f"(sample 3 from {places[3][0].name})" in show_step(str(folder / "run"), 0)

    alone = arguments_of(folder, 0, 1, "--train.steps=8")
    assert "from here on poems 100 %; before: corpus 50 %, poems 50 %" in started(alone, capsys)


def test_one_corpus_becomes_several_when_they_are_listed(data: Path, tmp_path: Path) -> None:
    folder = copy_data(data, tmp_path / "run")
    run_ranks(1, train_rank, run_arguments(folder, "--train.steps=2"))
    blend = prepare_small(arguments_of(folder, 1, 1)).data.training
    assert [phase.describe() for phase in blend.phases] == ["corpus 100 %", "corpus 50 %, poems 50 %"]
    assert blend.place_of(16)[1] == 16, "the first corpus goes on where it was"
    with pytest.raises(
        CheckpointError,
        match=r"(?s)cannot continue from .*: it was trained on other data\n.*data\.path .* list them in data.corp",
    ):
        prepare_small(run_arguments(folder, f"--data.path={folder}/poems"))


def test_a_corpus_that_was_built_again_is_refused(data: Path, tmp_path: Path) -> None:
    folder = copy_data(data, tmp_path / "run")
    run_ranks(1, train_rank, arguments_of(folder, 1, 1, "--train.steps=2"))
    lines = (folder / "poems.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "poems.jsonl").write_text("\n".join(lines[:-1]), encoding="utf-8")
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    build_dataset([str(folder / "poems.jsonl")], folder / "poems", tokenizer, overwrite=True)
    with pytest.raises(
        CheckpointError,
        match=r"(?s)  corpus 2, its documents .*The documents of the corpus poems or its split have chan",
    ):
        prepare_small(arguments_of(folder, 1, 1))


def test_a_checkpoint_of_another_order_of_samples_is_refused(data: Path, tmp_path: Path) -> None:
    folder = copy_data(data, tmp_path / "run")
    run_ranks(1, train_rank, arguments_of(folder, 1, 1, "--train.steps=2"))
    path = find_checkpoint(folder / "run") / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["phases"], values["sha256"]
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"it was written by a megagpt that had another order of samples"):
        prepare_small(arguments_of(folder, 1, 1))


def evaluated(*arguments: str) -> list[str]:
    """Lines that `megagpt evaluate` prints; in a process of its own, as it starts process groups."""
    command = [sys.executable, "-m", "megagpt", "evaluate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout.splitlines()


def test_evaluate_reads_every_corpus(data: Path, tmp_path: Path) -> None:
    folder = copy_data(data, tmp_path / "run")
    run_ranks(1, train_rank, arguments_of(folder, 1, 1, "--train.steps=2", "--evaluation.max_batches=100"))
    last = [record for record in read_metrics(folder) if "validation_loss" in record]
    printed = evaluated(str(folder / "run"))
    texts = [line.partition("text             ")[2] for line in printed if line.startswith("text")]
    assert [text.partition(":")[0] for text in texts] == [
        f"valid split of {folder}/corpus",
        f"valid split of {folder}/poems",
        "valid split of all 2 corpora",
    ]
    losses = [float(line.split()[1]) for line in printed if line.startswith("loss")]
    assert losses == pytest.approx([record["validation_loss"] for record in last], abs=6e-5)
    alone = evaluated(str(folder / "run"), "--data", f"{folder}/poems")
    assert [line for line in printed if line.startswith("loss")][1] in alone
