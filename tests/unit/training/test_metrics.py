"""Where records go: metrics.jsonl through crashes and resumes, TensorBoard as its reader sees it, Weights & Biases."""

import json
import math
import time
import warnings
from pathlib import Path

import pytest

from megagpt.config_file import load_config
from megagpt.errors import ConfigError
from megagpt.training.metrics import (
    CorpusEvaluationRecord,
    JsonlSink,
    TensorBoardSink,
    WandbSink,
    open_sinks,
    perplexity,
    write_run_config,
)
from tests.unit.training.records import evaluation_record, step_record


def lines(path: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path: Path, first_step: int, steps: range) -> None:
    sink = JsonlSink(path, first_step)
    for step in steps:
        sink.write(step_record(step))
    sink.close()


def test_jsonl_has_every_number(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    sink.write(step_record(1, mfu=0.4))
    assert lines(tmp_path / "metrics.jsonl")[0]["mfu"] == 0.4, "each line is flushed at once"
    sink.write(evaluation_record(1))
    sink.close()
    step, evaluation = lines(tmp_path / "metrics.jsonl")
    assert step == {
        "step": 1,
        "tokens": 100,
        "loss": 4.9,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "loss_scale": 1.0,
        "applied": True,
        "seconds_per_step": 0.25,
        "tokens_per_second": 400.0,
        "model_tflops": 0.05,
        "mfu": 0.4,
        "slowest_rank": None,
        "slowest_ratio": None,
    }
    assert evaluation == {
        "step": 1,
        "validation_loss": 4.0,
        "perplexity": 54.6,
        "unigram_entropy": 6.0,
        "num_tokens": 1000,
    }


def test_resume_drops_steps_that_are_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, 0, range(1, 8))
    write_jsonl(path, 4, range(5, 7))
    assert [record["step"] for record in lines(path)] == [1, 2, 3, 4, 5, 6]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_drops_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, 0, range(1, 4))
    whole = path.read_text()
    for torn in ('{"step": 2, "tok', "null\n", "{}\n", "\n", '{"step": "x"}\n'):
        path.write_text(whole + torn)
        JsonlSink(path, 3).close()
        assert path.read_text() == whole, torn


def test_a_new_run_in_an_old_folder_starts_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, 0, range(1, 4))
    write_jsonl(path, 0, range(1, 2))
    assert [record["step"] for record in lines(path)] == [1]


def test_a_rewind_without_room_leaves_the_file_in_use(tmp_path, monkeypatch):
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    sink.write(step_record(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megagpt.training.metrics.write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        sink.rewind(0)
    sink.write(step_record(2))
    sink.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_jsonl_stays_json_where_a_number_is_not_finite(tmp_path):
    """fp16 overflows give infinite norms; most readers of JSON refuse `Infinity` and `NaN`."""
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path, 0)
    sink.write(step_record(1, grad_norm=math.inf, applied=False))
    sink.write(step_record(2, grad_norm=math.nan))
    sink.close()
    assert [record["grad_norm"] for record in lines(path)] == [None, None]


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_gives_back_what_was_written(tmp_path):
    sink = TensorBoardSink(tmp_path, 0)
    for step in range(1, 4):
        sink.write(step_record(step))
    sink.write(CorpusEvaluationRecord(3, 4.5, 90.0, 6.5, 100, "wiki"))
    sink.write(evaluation_record(3))
    sink.close()
    scalars = read_scalars(tmp_path)
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3]
    assert [value for _, value in scalars["train/loss"]] == pytest.approx([4.9, 4.8, 4.7])
    assert scalars["validation/validation_loss"] == [(3, 4.0)]
    assert scalars["validation/wiki/validation_loss"] == [(3, 4.5)]
    assert scalars["validation/unigram_entropy"] == [(3, 6.0)]
    assert scalars["train/applied"] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert "train/mfu" not in scalars, "a number that is not known is not written"


def test_tensorboard_drops_steps_that_are_done_again(tmp_path):
    first = TensorBoardSink(tmp_path, 0)
    for step in range(1, 8):
        first.write(step_record(step, loss=9.0))
    first.close()
    second = TensorBoardSink(tmp_path, 4)
    for step in range(5, 7):
        second.write(step_record(step, loss=1.0))
    second.close()
    assert read_scalars(tmp_path)["train/loss"] == [(1, 9.0), (2, 9.0), (3, 9.0), (4, 9.0), (5, 1.0), (6, 1.0)]


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """wandb with a home and settings of its own, and a server that refuses."""
    pytest.importorskip("wandb")
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()


def config(*arguments: str):
    return load_config(None, list(arguments)).config


def test_wandb_offline_writes_into_the_run_folder(tmp_path, no_network):
    sink = WandbSink(tmp_path / "run", config("--log.wandb=offline", "--run.name=try"))
    sink.write(step_record(1))
    sink.write(evaluation_record(1))
    sink.close()
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (file,) = offline.glob("*.wandb")
    for text in (b"train/loss", b"validation/unigram_entropy", b"try"):
        deadline = time.monotonic() + 30  # wandb's own process goes on writing for a moment
        while text not in file.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert text in file.read_bytes()
    run_id = (tmp_path / "run" / "wandb-id").read_text()
    assert offline.name.endswith(run_id)


def test_wandb_run_goes_on_after_a_resume(tmp_path, no_network):
    for step in (1, 2):
        sink = WandbSink(tmp_path / "run", config("--log.wandb=offline"))
        sink.write(step_record(step))
        sink.close()
    run_id = (tmp_path / "run" / "wandb-id").read_text()
    folders = [path.name.split("-")[3] for path in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert folders == [run_id, run_id]


def test_wandb_online_without_a_key_says_what_to_do(tmp_path, no_network):
    with pytest.raises(
        ConfigError, match=r'log\.wandb = "online" cannot start: .*; run `wandb login`, or use "offline"'
    ):
        WandbSink(tmp_path / "run", config("--log.wandb=online"))


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        ((), ["JsonlSink", "TensorBoardSink"]),
        (("--log.tensorboard=false",), ["JsonlSink"]),
        (("--log.tensorboard=false", "--log.wandb=offline"), ["JsonlSink", "WandbSink"]),
    ],
)
def test_sinks_are_those_asked_for(tmp_path, no_network, arguments, kinds):
    sinks = open_sinks(tmp_path / "run", config(*arguments), 0)
    assert [type(sink).__name__ for sink in sinks] == kinds
    for sink in sinks:
        sink.close()
    assert (tmp_path / "run" / "wandb").exists() == ("WandbSink" in kinds)


def test_the_resolved_configuration_is_written_and_reads_back(tmp_path):
    written = config("--train.lr=2e-4", "--run.name=中文")
    write_run_config(tmp_path, written)
    assert load_config(str(tmp_path / "config.toml"), []).config == written


def test_perplexity():
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1000.0) == math.inf
