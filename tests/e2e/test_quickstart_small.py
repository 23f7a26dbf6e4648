"""The whole main job in small, through the commands a user types: corpus, tokenizer, dataset, two-rank training that
is killed and resumed, evaluation, generation and export.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parallel.runs import make_corpus, read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_STEPS = 12
CONFIG = """
[run]
name = "small"
folder = "run"

[model]
name = "gpt3-small"
num_layers = 2
num_heads = 2
hidden_size = 64
sequence_length = 64

[tokenizer]
path = "tokenizer.model"

[data]
path = "corpus"
split = [0.9, 0.1, 0.0]

[train]
steps = 12
batch_tokens = 512
micro_batch_size = 2
precision = "bf16"
lr = 3e-3
warmup_tokens = "1k"
decay_tokens = 6144

[evaluation]
interval_steps = 6

[checkpoint]
interval_steps = 3

[log]
wandb = "offline"
"""


def environment() -> dict[str, str]:
    path = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}


def megagpt(folder: Path, *arguments: str) -> str:
    """Run a megagpt command in a folder; its output. Fails with what it printed."""
    command = [sys.executable, "-m", "megagpt", *arguments]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def start_training(folder: Path) -> subprocess.Popen[str]:
    """torchrun on two ranks, in a process group of its own."""
    script = str(REPOSITORY / "pretrain" / "pretrain_gpt.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, script, "small.toml"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def kill_at_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """kill -9 the launcher and both ranks once metrics.jsonl shows the step."""
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and f'"step": {step},' in metrics.read_text(encoding="utf-8"):
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"ended before step {step}:\n{output}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset built and the unbroken run trained beside the one that was killed and resumed."""
    place = tmp_path_factory.mktemp("quickstart")
    make_corpus(place)
    megagpt(place, "tokenizer", "train", "corpus.jsonl", "--output", "tokenizer.model", "--vocab-size", "400")
    megagpt(place, "data", "build", "corpus.jsonl", "--output", "corpus", "--tokenizer", "tokenizer.model")
    (place / "small.toml").write_text(CONFIG, encoding="utf-8")
    unbroken = place / "unbroken"
    unbroken.mkdir()
    for name in ("tokenizer.model", "corpus.bin", "corpus.idx", "corpus.json", "small.toml"):
        (unbroken / name).symlink_to(place / name)
    finish(start_training(unbroken))
    kill_at_step(start_training(place), place, 5)
    finish(start_training(place))
    return place


@pytest.mark.timeout(600)
def test_killed_and_resumed_run_equals_the_unbroken_one(folder: Path) -> None:
    records = read_metrics(folder)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, NUM_STEPS + 1))
    assert records == read_metrics(folder / "unbroken")
    assert records[-1]["validation_loss"] < records[0]["loss"]
    checkpoint = "run/checkpoints/step-00000012/weights-rank00000.safetensors"
    assert (folder / checkpoint).read_bytes() == (folder / "unbroken" / checkpoint).read_bytes()


def test_training_needs_no_launcher_on_one_rank(folder: Path) -> None:
    printed = megagpt(folder, "train", "small.toml", "--run.folder", "alone", "--train.steps", "2")
    assert "2 steps of 512 tokens on 1 ranks" in printed
    assert "no MFU: the dense bf16 peak of CPU is not in the table" in printed
    assert "validation after step 2: loss" in printed
    assert (folder / "alone" / "checkpoints" / "step-00000002" / "manifest.json").is_file()


def test_a_finished_run_says_so(folder: Path) -> None:
    assert "already trained for 12 of 12 steps" in finish(start_training(folder))


def test_the_run_folder_holds_what_a_person_looks_for(folder: Path) -> None:
    run = folder / "run"
    assert (run / "config.toml").is_file()
    assert list((run / "tensorboard").glob("events.*"))
    assert list((run / "wandb").glob("offline-run-*"))
    assert "verified" in megagpt(folder, "checkpoint", "inspect", "run", "--verify")


def test_evaluate_agrees_with_the_last_validation(folder: Path) -> None:
    last = read_metrics(folder)[-1]["validation_loss"]
    printed = megagpt(folder, "evaluate", "run")
    loss = float(next(line for line in printed.splitlines() if line.startswith("loss")).split()[1])
    assert loss == pytest.approx(last, rel=2e-3)  # bf16 in training, fp32 here


def test_generate_is_repeatable_and_greedy_ignores_the_cache(folder: Path) -> None:
    arguments = ("generate", "run", "--prompt", "天地", "--max-new-tokens", "8")
    assert megagpt(folder, *arguments, "--seed", "1") == megagpt(folder, *arguments, "--seed", "1")
    assert megagpt(folder, *arguments, "--greedy") == megagpt(folder, *arguments, "--greedy", "--no-cache")


def test_export_loads_in_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    megagpt(folder, "export", "run", "--format", "hf", "--output", "exported")
    report = json.loads((folder / "exported" / "export_report.json").read_text(encoding="utf-8"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "exported")
    ids = tokenizer("天地玄黄", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0])
    ours = megagpt(folder, "generate", "run", "--prompt", "天地玄黄", "--max-new-tokens", "4", "--greedy")
    assert text.strip() == ours.strip(), report
