"""Whether DeepSpeed's operators for parameters in files are compiled here: compiling them takes minutes."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

_OPERATORS = ("pin_memory", "async_io")


def skip_unless_files_are_possible() -> None:
    """Skip the calling test, with the command that compiles, where DeepSpeed would compile first."""
    if missing := missing_operators():
        pytest.skip(
            f"{' and '.join(missing)} of DeepSpeed not compiled in {built_operators()} for this environment; needs "
            "libaio-dev and g++, then "
            "python -c 'from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()'"
        )


def built_operators() -> Path:
    """Where torch keeps what DeepSpeed compiled on a machine without CUDA (torch/utils/cpp_extension.py)."""
    from torch.utils.cpp_extension import get_default_build_root  # slow

    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}_cpu"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(get_default_build_root(), python))


def missing_operators() -> list[str]:
    """Operators that would have to be compiled first: never built, being built, or built from another environment."""
    found = importlib.util.find_spec("deepspeed")
    assert found is not None
    assert found.origin is not None
    sources = str(Path(found.origin).parent)
    missing = []
    for name in _OPERATORS:
        folder = built_operators() / name
        rules = folder / "build.ninja"
        built = folder / f"{name}.so"
        is_ours = rules.is_file() and sources in rules.read_text(encoding="utf-8")
        is_current = built.exists() and is_ours and built.stat().st_mtime >= rules.stat().st_mtime
        if not is_current or (folder / "lock").exists():
            missing.append(name)
    return missing
