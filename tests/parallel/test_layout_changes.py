"""A run saved on one layout continues on another: the state comes over bit for bit, the next steps within parity.

Every pair is tested both ways. The same layout, bit for bit over whole runs: test_resume.py.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from megagpt.checkpoint.manifest import step_folder
from tests.parallel.harness import run_ranks
from tests.parallel.layout_changes import (
    SAVED_AFTER,
    STEPS,
    State,
    Trained,
    continue_from_each,
    read_state,
    train_saving,
)


class Case(NamedTuple):
    """A layout and its precision."""

    num_ranks: int
    arguments: tuple[str, ...]
    precision: str = "fp32"

    def all_arguments(self) -> list[str]:
        """With the settings that all cases share; fp16 begins with a scale at which the first step overflows."""
        shared = [f"--train.steps={STEPS}", "--train.fp16_scale_window_steps=2", "--train.fp16_initial_scale_power=30"]
        return [*shared, f"--train.precision={self.precision}", *(f"--parallel.{value}" for value in self.arguments)]


TENSOR_2 = ("tensor=2", "sequence_parallel=true")
ALL_OFFLOADED = ("zero_stage=3", "offload_optimizer=cpu", "offload_parameters=cpu")
CASES = {
    "one rank": Case(1, ("zero_stage=0",)),
    "eight ranks": Case(8, (*TENSOR_2, "pipeline=2")),
    "data 2, ZeRO 0": Case(2, ("zero_stage=0",)),
    "data 2, ZeRO 1": Case(2, ()),
    "data 4, ZeRO 3": Case(4, ("zero_stage=3",)),
    "tensor 4": Case(4, ("tensor=4",)),
    "interleaved": Case(2, ("pipeline=2", "virtual_stages=2")),
    "1 and 3 layers": Case(4, ("pipeline=2", "stage_layers=1,3")),
    "tensor 2, ZeRO 2": Case(4, (*TENSOR_2, "zero_stage=2")),
    "context 2": Case(4, ("context=2",)),
    "offloaded": Case(2, ALL_OFFLOADED),
    "bf16 tensor 2": Case(2, TENSOR_2, "bf16"),
    "bf16 ZeRO 3": Case(2, ("zero_stage=3",), "bf16"),
    "bf16 ZeRO 2 offloaded": Case(2, ("zero_stage=2", "offload_optimizer=cpu"), "bf16"),
    "fp16 pipeline 2": Case(2, ("pipeline=2",), "fp16"),
    "fp16 ZeRO 3": Case(2, ("zero_stage=3",), "fp16"),
    "fp16 context 2, ZeRO 2": Case(2, ("context=2", "zero_stage=2"), "fp16"),
}
PAIRS = [
    ("one rank", "eight ranks"),
    ("one rank", "data 4, ZeRO 3"),
    ("data 2, ZeRO 0", "offloaded"),
    ("data 2, ZeRO 0", "data 2, ZeRO 1"),
    ("data 2, ZeRO 1", "tensor 2, ZeRO 2"),
    ("tensor 4", "interleaved"),
    ("1 and 3 layers", "tensor 2, ZeRO 2"),
    ("1 and 3 layers", "context 2"),
    ("context 2", "offloaded"),
    ("eight ranks", "tensor 4"),
    ("bf16 tensor 2", "bf16 ZeRO 3"),
    ("bf16 ZeRO 3", "bf16 ZeRO 2 offloaded"),
    ("fp16 pipeline 2", "fp16 ZeRO 3"),
    ("fp16 ZeRO 3", "fp16 context 2, ZeRO 2"),
]
BOTH_WAYS = [pair for a, b in PAIRS for pair in ((a, b), (b, a))]


class Bounds(NamedTuple):
    """Largest relative differences from the unbroken run."""

    loss: float
    norm: float
    weight: float  # ‖found − expected‖₂ / ‖expected‖₂ of a whole parameter


# measured over all pairs: fp32 4.8e-8, 1.1e-7, 1.6e-7; bf16 1.9e-5, 3.0e-4, 2.5e-3; fp16 1.5e-6, 1.3e-4, 3.3e-4
BOUNDS = {
    "fp32": Bounds(1e-6, 1e-6, 2e-6),
    "bf16": Bounds(1e-4, 2e-3, 1e-2),
    "fp16": Bounds(1e-5, 1e-3, 2e-3),
}


class Runs:
    """Each layout's unbroken run, and all that continue on it, made when a test first asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.unbroken: Callable[[str], list[Trained]] = cache(self._unbroken)
        self.continued: Callable[[str], list[dict[str, Trained]]] = cache(self._continued)
        self.state: Callable[[Path], State] = cache(read_state)

    def saved(self, source: str, step: int) -> Path:
        """A checkpoint of the unbroken run."""
        return self._folder / source / step_folder(step)

    def saved_again(self, source: str, target: str, step: int) -> Path:
        """A checkpoint of the run that came from `source` to `target`."""
        return self._folder / f"{source} to {target}" / step_folder(step)

    def _unbroken(self, name: str) -> list[Trained]:
        case = CASES[name]
        return run_ranks(case.num_ranks, train_saving, case.num_ranks, case.all_arguments(), self._folder / name)

    def _continued(self, target: str) -> list[dict[str, Trained]]:
        case = CASES[target]
        sources = [source for source, other in BOTH_WAYS if other == target]
        for source in sources:
            self.unbroken(source)
        return run_ranks(
            case.num_ranks,
            continue_from_each,
            case.num_ranks,
            case.all_arguments(),
            {source: self.saved(source, SAVED_AFTER) for source in sources},
            {source: self.saved_again(source, target, SAVED_AFTER).parent for source in sources},
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(("source", "target"), BOTH_WAYS)
def test_state_comes_over_bit_for_bit(runs: Runs, source: str, target: str) -> None:
    """What the new layout saves before it has trained is what the old one saved, to the bit."""
    runs.continued(target)
    before = runs.state(runs.saved(source, SAVED_AFTER))
    after = runs.state(runs.saved_again(source, target, SAVED_AFTER))
    assert after.optimizer == before.optimizer
    different = [key for key, value in before.tensors.items() if not torch.equal(after.tensors[key], value)]
    assert not different
    moments = [value for (_, kind), value in before.tensors.items() if kind != "master"]
    assert all(value.any() for value in moments), "moments of the first steps are not zero"


@pytest.mark.parametrize(("source", "target"), BOTH_WAYS)
def test_next_steps_equal_the_unbroken_run(runs: Runs, source: str, target: str) -> None:
    bounds = BOUNDS[CASES[source].precision]
    unbroken, continued = runs.unbroken(source)[0], runs.continued(target)
    for rank, result in enumerate(seen[source] for seen in continued):
        assert result.scales == unbroken.scales, rank
        assert result.losses == pytest.approx(unbroken.losses, rel=bounds.loss), rank
        # fp16's first step here raises the loss scale, and ZeRO 3 divides the norm of such a step by the raised scale,
        # ZeRO 1 and 2 by the one it was computed with (DeepSpeed 0.19.8, zero/stage3.py and stage_1_and_2.py, step)
        first = 1 if CASES[source].precision == "fp16" else 0
        assert result.norms[first:] == pytest.approx(unbroken.norms[first:], rel=bounds.norm), rank
    wanted = runs.state(runs.saved(source, STEPS))
    found = runs.state(runs.saved_again(source, target, STEPS))
    assert found.optimizer == wanted.optimizer
    for (name, kind), value in wanted.tensors.items():
        if kind == "master":
            difference = (found.tensors[name, kind] - value).norm() / value.norm()
            assert difference <= bounds.weight, f"{name}: {difference}"


def test_what_fp16_brings_over(runs: Runs) -> None:
    """The cases above are about a step count that is not the number of steps, and a scale due to be raised."""
    seen = runs.unbroken("fp16 ZeRO 3")[0]
    progress = runs.state(runs.saved("fp16 ZeRO 3", SAVED_AFTER)).optimizer
    assert progress is not None
    assert progress.updates == SAVED_AFTER - 1
    assert seen.scales == [256.0, 512.0]
