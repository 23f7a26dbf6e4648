"""A run that is started again with other values: what is refused in a table, what is allowed in a line, other data."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from megagpt.checkpoint.read import find_checkpoint, read_manifest
from megagpt.data.show_run import show_step
from megagpt.errors import CheckpointError, no_rights
from megagpt.training.run_record import read_sessions
from megagpt.training.session import describe_start
from tests.parallel.harness import run_ranks
from tests.parallel.runs import flip_bit, make_data, make_poems, prepare_small, read_metrics, run_arguments, train_rank


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on `corpus`, and `poems` of the same tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    make_poems(folder)
    run_ranks(1, train_rank, run_arguments(folder, "--train.steps=2"))
    return folder


def refused(folder: Path, *extra: str) -> list[str]:
    """The lines of the error that a start with other values meets, without the first one's place."""
    with pytest.raises(CheckpointError) as caught:
        prepare_small(run_arguments(folder, *extra))
    return str(caught.value).replace(str(folder), "DATA").splitlines()


def test_all_that_differs_is_in_one_table(trained: Path) -> None:
    assert refused(trained, "--model.hidden_size=64", "--run.seed=5", "--train.lr=1e-3", "--train.steps=4") == [
        "the run cannot continue from DATA/run/checkpoints/step-00000002: what must stay as it was differs",
        "  model.hidden_size      32   → 64   (command line)",
        "  model.ffn_hidden_size  128  → 256  (follows from model.hidden_size)",
        "  run.seed               1234 → 5    (command line)",
        "other values that changed: train.steps, train.lr",
        "Restore these values, or choose another run.folder to start anew",
    ]


def test_a_batch_that_makes_other_steps(trained: Path) -> None:
    assert refused(trained, "--train.batch_tokens=512") == [
        "the run cannot continue from DATA/run/checkpoints/step-00000002: the steps done would be others",
        "  tokens of its 2 steps  512 → 1,024",
        "  train.batch_tokens     256 → 512    (command line)",
        "other values that changed: train.steps",
        "Restore these values, or choose another run.folder to start anew",
    ]


def test_another_tokenizer(trained: Path, tmp_path: Path) -> None:
    from megagpt.tokenizer.train import TokenizerSettings, train_sentencepiece

    texts = [json.loads(line)["text"] for line in (trained / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    train_sentencepiece(texts, tmp_path / "tokenizer.model", TokenizerSettings(vocab_size=390))
    lines = refused(trained, f"--tokenizer.path={tmp_path}/tokenizer.model", "--train.steps=2")
    assert lines[1].startswith("  model.vocab_size       400")
    assert lines[1].endswith("(follows from tokenizer.path)")
    assert lines[2].startswith("  tokenizer, its sha256  ")
    assert lines[2].endswith("…  (command line)")


def test_other_data(trained: Path) -> None:
    lines = refused(trained, f"--data.path={trained}/poems", "--train.steps=2")
    assert lines[0] == "the run cannot continue from DATA/run/checkpoints/step-00000002: it was trained on other data"
    assert re.fullmatch(r'  data\.path                "DATA/corpus" +→ "DATA/poems" +\(command line\)', lines[1])
    assert re.fullmatch(r"  corpus 1, its documents  corpus [0-9a-f]{12}… +→ poems [0-9a-f]{12}…", lines[2])
    assert lines[3:] == [
        "It was trained on corpus 100 %; to go on with other corpora, list them in data.corpora. Where the new data "
        "are meant, add --allow-data-change: the run goes on with them from sample 16 on. Restore these values, or "
        "choose another run.folder to start anew"
    ]


def test_harmless_changes_are_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    changes = ["--train.lr=1e-3", "--train.steps=4", "--train.micro_batch_size=1", "--parallel.zero_stage=0"]
    moved = [f"--tokenizer.path={trained}/tokenizer.model", f"--data.path={trained}/corpus"]
    arguments = run_arguments(folder, *changes, *moved)
    prepared = prepare_small(arguments)
    assert [difference.describe() for difference in prepared.changed] == [
        "train.steps 2 → 4 (command line)",
        "train.micro_batch_size 2 → 1 (command line)",
        "train.lr 0.003 → 0.001 (command line)",
        "parallel.zero_stage 1 → 0 (command line)",
    ]
    describe_start(prepared, Console(width=300))
    assert "\nchanged since the checkpoint: train.steps 2 → 4 (command line); train.micro_" in capsys.readouterr().out
    run_ranks(1, train_rank, arguments)
    assert read_sessions(folder / "run")[-1].start.changed[2] == "train.lr 0.003 → 0.001 (command line)"
    assert prepare_small(arguments).changed == ()


def test_a_layout_that_was_found_is_said(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("run"))
    elastic = ["--parallel.elastic=true", "--parallel.pipeline=2", "--train.steps=2"]
    run_ranks(2, train_rank, run_arguments(folder, *elastic))
    changes = [difference.describe() for difference in prepare_small(run_arguments(folder, *elastic)).changed]
    assert changes == ["parallel.pipeline 2 → 1 (parallel.elastic)"]


def test_a_configuration_of_another_megagpt_is_no_obstacle(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    config = folder / "run" / "checkpoints" / "step-00000002" / "config.toml"
    config.write_text(config.read_text(encoding="utf-8") + "\n[later]\nkey = 1\n", encoding="utf-8")
    assert prepare_small(run_arguments(folder, "--train.lr=1e-3")).changed == ()


def test_data_that_are_meant_to_change(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same name, other documents: refused, then allowed, and resumed again without another word."""
    folder = shutil.copytree(trained, tmp_path / "run")
    for end in (".bin", ".idx", ".json"):
        shutil.copyfile(folder / f"poems{end}", folder / f"corpus{end}")
    lines = refused(folder)
    assert lines[-1].startswith("The documents of the corpus corpus or its split have changed since")
    arguments = run_arguments(folder, "--train.steps=4", "--evaluation.interval_steps=0")

    run_ranks(1, train_rank, arguments, True)
    assert find_checkpoint(folder / "run").name == "step-00000004"
    phases = read_manifest(folder / "run" / "checkpoints" / "step-00000004").phases
    assert [(phase.first_sample, [corpus.name for corpus in phase.corpora]) for phase in phases] == [
        (0, ["corpus"]),
        (16, ["corpus"]),
    ]
    assert phases[0].corpora[0].fingerprint != phases[1].corpora[0].fingerprint
    assert [session.start.allow_data_change for session in read_sessions(folder / "run")] == [False, True]
    assert "春" in show_step(str(folder / "run"), 3) or "花" in show_step(str(folder / "run"), 3)

    again = prepare_small(run_arguments(folder, "--evaluation.interval_steps=0"))
    assert again.data.training.phases == phases
    assert again.data.training.place_of(47) == (phases[1].corpora[0], 31), "the new data from their first sample on"
    describe_start(again, Console(width=300))
    assert "from sample 16 on corpus 100 % (other documents); before: corpus 100 %" in capsys.readouterr().out
    run_ranks(1, train_rank, run_arguments(folder, "--evaluation.interval_steps=0"))
    unbroken = shutil.copytree(trained, tmp_path / "unbroken")
    for end in (".bin", ".idx", ".json"):
        shutil.copyfile(folder / f"poems{end}", unbroken / f"corpus{end}")
    run_ranks(1, train_rank, run_arguments(unbroken, "--evaluation.interval_steps=0"), True)
    losses = [[record["loss"] for record in read_metrics(run) if "loss" in record] for run in (folder, unbroken)]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1], "stopped and resumed within the new data, bit for bit"


def test_what_the_flag_does_not_allow(trained: Path) -> None:
    with pytest.raises(CheckpointError, match=r"what must stay as it was differs\n  run\.seed"):
        prepare_small(run_arguments(trained, "--run.seed=5", f"--data.path={trained}/poems"), allow_data_change=True)


def prepare_as_nobody(arguments: list[str]) -> str:
    """What a user without rights is told."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        prepare_small(arguments)
    except PermissionError as error:
        return str(no_rights(error))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("closed", ["run/checkpoints", "run/checkpoints/step-00000002/manifest.json"])
def test_a_checkpoint_without_rights(trained: Path, closed: str) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        os.chmod(place, 0o755)
        folder = shutil.copytree(trained, Path(place) / "data")
        os.chmod(folder, 0o755)
        (folder / closed).chmod(0)
        (message,) = run_ranks(1, prepare_as_nobody, run_arguments(folder))
        (folder / closed).chmod(0o755)
    assert re.search(
        rf"{re.escape(str(folder / closed))}.* may not be (used|read) by this user.*; give it the rights", message
    )


def test_a_session_that_falls_back_is_recorded_with_what_it_continues_from(trained: Path, tmp_path: Path) -> None:
    """A hash is found wrong only as the checkpoint is read, after the session has begun."""
    folder = shutil.copytree(trained, tmp_path / "run")
    run_ranks(1, train_rank, run_arguments(folder, "--train.steps=4"))
    flip_bit(folder / "run" / "checkpoints" / "step-00000004" / "moments-rank00000.safetensors")
    run_ranks(1, train_rank, run_arguments(folder))
    last = read_sessions(folder / "run")[-1]
    assert (last.start.session, last.start.first_step, last.start.continued_from) == (3, 2, "step-00000002")
    assert last.end is not None
    assert (last.end.last_step, last.end.reason) == (6, "complete")
