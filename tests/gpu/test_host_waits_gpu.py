"""The host runs ahead of the GPU but where it must: torch's sync debug mode around a step. No result recorded yet."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megagpt.data.stream import BatchStream
from megagpt.parallel.engine import Engine
from megagpt.plan_batches import StepBatch
from megagpt.training import loop, signs
from megagpt.training.own_seconds import OwnSeconds
from megagpt.training.progress import Phase, Progress
from megagpt.training.read_ahead import ReadAhead
from tests.parallel.runs import make_data, read_metrics, run_arguments, train_rank

pytestmark = pytest.mark.gpu
STEADY_STEPS = (3, 4, 5)
LENGTH = 64


@contextmanager
def sync_mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def in_mode(mode: str, function: Any) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        with sync_mode(mode):
            return function(*arguments, **options)

    return call


LAYOUTS = {
    "bf16": ["--train.precision=bf16"],
    "fp16": ["--train.precision=fp16"],
    "fp32": ["--train.precision=fp32"],
    "ZeRO 0": ["--parallel.zero_stage=0"],
    "ZeRO 2": ["--parallel.zero_stage=2", "--train.precision=bf16"],
    "ZeRO 3": ["--parallel.zero_stage=3", "--train.precision=bf16"],
    "dropout": ["--train.precision=bf16", "--model.hidden_dropout=0.1", "--model.attention_dropout=0.1"],
    "documents apart": ["--train.precision=bf16", "--data.separate_documents=true"],
    "recompute": ["--train.precision=bf16", "--train.recompute=full"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_steady_step_waits_in_one_place(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere else but in DeepSpeed's update, which looks at the norm, an operation that waits is an error."""
    make_data(tmp_path)
    real_step, seen = loop._train_step, []

    def watched_step(run: Any, reader: Any, step: int) -> Any:
        if step not in STEADY_STEPS:
            return real_step(run, reader, step)
        seen.append(step)
        with sync_mode("error"):
            return real_step(run, reader, step)

    monkeypatch.setattr(loop, "_train_step", watched_step)
    monkeypatch.setattr(signs, "read_from_device", in_mode("default", signs.read_from_device))
    monkeypatch.setattr(Engine, "update", in_mode("default", Engine.update))
    monkeypatch.setenv("LOCAL_RANK", "0")
    train_rank(run_arguments(tmp_path, "--evaluation.interval_steps=0", "--train.steps=6", *LAYOUTS[layout]))
    assert tuple(seen) == STEADY_STEPS
    losses = [record["loss"] for record in read_metrics(tmp_path) if "loss" in record]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_the_debug_mode_sees_a_wait() -> None:
    values = torch.arange(4.0, device="cuda")
    with sync_mode("error"), pytest.raises(RuntimeError):
        values.tolist()


class Samples:
    """Sample n is tokens that begin at n."""

    samples_per_epoch = 10_000

    def tokens_of_many(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        return samples[:, None] + np.arange(LENGTH + 1)


@pytest.mark.parametrize("separate_documents", [True, False])
def test_batches_read_ahead_reach_the_gpu(separate_documents: bool) -> None:
    """From pinned memory, without waiting, while the device is busy; each is whole."""
    device = torch.device("cuda", torch.cuda.current_device())
    stream = BatchStream(Samples(), LENGTH, 0, separate_documents, 0, 1)
    steps = [StepBatch(step, step * 8, 8, 2, 4, step * 8 * LENGTH) for step in range(20)]
    matrix, found = torch.randn(3000, 3000, device=device), []
    with ReadAhead(stream, device) as reader:
        for step, after in zip(steps, [*steps[1:], steps[-1]], strict=True):
            with sync_mode("error"):
                found.append(reader.take(step))
            reader.begin(after)
            matrix = matrix @ matrix / 3000
    for step, batches in zip(steps, found, strict=True):
        for one, other in zip(batches, stream.micro_batches(step), strict=True):
            assert one.tokens.device == device
            parts = [(mine, plain) for mine, plain in zip(one, other, strict=True) if plain is not None]
            assert all(torch.equal(mine.cpu(), plain) for mine, plain in parts)


def test_own_seconds_are_the_devices_of_the_step_before() -> None:
    progress = Progress()
    own = OwnSeconds(progress, torch.device("cuda"))
    matrix, seconds = torch.randn(4000, 4000, device="cuda"), []
    for step in range(3):
        progress.mark(Phase.PASSES, step + 1)
        own.begin_passes()
        for _ in range(5 if step == 0 else 50):
            matrix = matrix @ matrix / 4000
        own.end_passes()
        seconds.append(own.newest())
        torch.cuda.synchronize()
    assert seconds[0] == 0.0
    assert 0 < seconds[1] < seconds[2]
