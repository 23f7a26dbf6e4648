"""ZeRO 3 with its parameters in files is the same model. Needs operators of DeepSpeed that were compiled before."""

import os
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import get_default_build_root

from tests.parity.compare import Case, check
from tests.parity.measured import Measured
from tests.parity.test_precision import HALF


def built_operators() -> Path:
    """Where torch keeps what DeepSpeed compiled on a machine without CUDA (torch/utils/cpp_extension.py)."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}_cpu"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(get_default_build_root(), python))


def missing_operators() -> list[str]:
    """Operators that would have to be compiled first, for a minute or more."""
    names = [name for name in ("pin_memory", "async_io") if not (built_operators() / name / f"{name}.so").exists()]
    locked = [name for name in ("pin_memory", "async_io") if (built_operators() / name / "lock").exists()]
    return sorted({*names, *locked})


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
    if missing := missing_operators():
        pytest.skip(
            f"{' and '.join(missing)} of DeepSpeed not compiled in {built_operators()}; needs libaio-dev and g++, then "
            "python -c 'from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()'"
        )
    layout = ("--parallel.zero_stage=3", "--parallel.offload_parameters=nvme", f"--parallel.nvme_folder={tmp_path}")
    epsilon = HALF if precision == "bf16" else ()
    check(Case(2, (*layout, *extra), epsilon), precision, measured, request.node.name)
    assert any(path.is_file() for path in tmp_path.rglob("*")), "no parameter was written to a file"
