"""ZeRO 3 with its parameters in files is the same model. Needs operators of DeepSpeed that were compiled before."""

from pathlib import Path

import pytest

from tests.parallel.compiled import skip_unless_files_are_possible
from tests.parity.compare import Case, check
from tests.parity.measured import Measured
from tests.parity.test_precision import HALF


@pytest.mark.parametrize(
    ("precision", "extra"),
    [
        ("fp32", ()),
        ("fp32", ("--parallel.offload_optimizer=cpu",)),
        ("fp32", ("--parallel.tensor=2", "--parallel.sequence_parallel=true")),
        ("bf16", ()),
    ],
)
def test_parameters_in_files_equal_the_reference(
    precision: str, extra: tuple[str, ...], tmp_path: Path, measured: Measured, request: pytest.FixtureRequest
) -> None:
    skip_unless_files_are_possible()
    layout = ("--parallel.zero_stage=3", "--parallel.offload_parameters=nvme", f"--parallel.nvme_folder={tmp_path}")
    epsilon = HALF if precision == "bf16" else ()
    check(Case(2, (*layout, *extra), epsilon), precision, measured, request.node.name)
    assert any(path.is_file() for path in tmp_path.rglob("*")), "no parameter was written to a file"
