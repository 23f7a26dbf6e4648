"""A steady step reads its tensors in one place of ours; what megatron-core and DeepSpeed read beside is known."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.harness import run_ranks
from tests.parallel.host_waits import HostReads
from tests.parallel.runs import run_arguments, train_rank

STEADY_STEP = 3


def waits_of_a_step(arguments: list[str]) -> Counter[str]:
    """Train one rank as `megagpt train` does; the readings of one step, from its data to its record."""
    from megagpt.parallel.cpu import _CpuInPlaceOfCuda
    from megagpt.training import loop

    real_step, reads = loop._train_step, HostReads()

    def watched_step(run: Any, reader: Any, step: int) -> Any:
        if step != STEADY_STEP:
            return real_step(run, reader, step)
        with reads:
            return real_step(run, reader, step)

    _CpuInPlaceOfCuda.synchronize = staticmethod(reads.note)  # type: ignore[method-assign]
    loop._train_step = watched_step
    train_rank(arguments)
    return reads.places


OURS = {"megagpt/training/signs.py: read_from_device": 1}
# DeepSpeed decides by the norm of all gradients whether to clip and to update: it waits for the sums over the data
# ranks. We read the norm for the record after the update was given to the device, or, where we clip, to do so
UTILS, ZERO = "deepspeed/runtime/utils.py", "deepspeed/runtime/zero"
NORM = {"megagpt/parallel/engine.py: update": 1, f"{UTILS}: is_invalid_grad_norm": 3}
ONE_NORM = {f"{UTILS}: is_invalid_grad_norm": 1}
BF16_NORM = {"megagpt/parallel/bf16_update.py: _norm": 1}
OVERFLOW = {f"{ZERO}/stage_1_and_2.py: has_overflow": 1}
PLACE = "<listcomp>" if sys.version_info < (3, 12) else "pieces"  # from 3.12 on a comprehension is part of its function
PIECES = {f"megagpt/kernels/attention_documents.py: {PLACE}": 16}
CASES = {
    "ZeRO 0": (1, ["--parallel.zero_stage=0"], {"megagpt/parallel/engine.py: _clip_unpartitioned": 1}),
    "ZeRO 1": (2, ["--parallel.zero_stage=1"], NORM),
    "ZeRO 1, bf16": (2, ["--parallel.zero_stage=1", "--train.precision=bf16"], BF16_NORM),
    "ZeRO 1, fp16": (2, ["--parallel.zero_stage=1", "--train.precision=fp16"], NORM | OVERFLOW),
    "ZeRO 2, bf16": (2, ["--parallel.zero_stage=2", "--train.precision=bf16"], NORM | OVERFLOW),
    "ZeRO 3, bf16": (2, ["--parallel.zero_stage=3", "--train.precision=bf16"], NORM | ONE_NORM),
    "tensor": (2, ["--parallel.tensor=2", "--parallel.sequence_parallel=true"], NORM),
    "pipeline": (2, ["--parallel.pipeline=2"], NORM),
    "context": (2, ["--parallel.context=2"], NORM),
    # on a CPU torch's attention takes a few documents at a time, and reads where they begin
    "documents apart": (1, ["--data.separate_documents=true"], NORM | PIECES),
    "dropout": (1, ["--model.hidden_dropout=0.1", "--model.attention_dropout=0.1"], NORM),
    "recompute": (1, ["--train.recompute=full"], NORM),
}


@pytest.mark.parametrize("case", CASES)
def test_the_host_reads_in_one_place_of_ours(data: Path, tmp_path: Path, case: str) -> None:
    """And nowhere once a micro-batch, a layer or a parameter: 4 micro-batches of 2 layers with 28 parameters."""
    num_ranks, arguments, of_deepspeed = CASES[case]
    quiet = ("--evaluation.interval_steps=0", "--checkpoint.interval_steps=0", f"--run.folder={tmp_path}/run")
    for places in run_ranks(num_ranks, waits_of_a_step, run_arguments(data, *quiet, *arguments)):
        assert places == OURS | of_deepspeed


def test_readings_are_seen() -> None:
    values = torch.arange(4.0)
    with HostReads() as reads:
        float(values[0])
        values.tolist()
        bool(values[1] > 0)
        values[values > 1]
        values.nonzero()
        values[values > 1] = torch.ones(2)
    assert reads.places == {"elsewhere": 6}
    with HostReads() as reads:
        values[values > 1] = 0.0
        values.masked_fill(values > 1, 0.0)
        torch.where(values > 1, values, 0).sum()
        values[2] = 1.0
    assert reads.places == {}
