"""On the CPU DeepSpeed starts without compiling anything."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

# In a process of its own: what DeepSpeed's modules hold depends on what was imported first.
SCRIPT = """
import os
import deepspeed
from megagpt.parallel.cpu import patch_deepspeed_for_cpu
from megagpt.parallel.mesh import build_mesh, destroy_mesh
patch_deepspeed_for_cpu()
build_mesh(1, 1)
deepspeed.init_distributed(dist_init_required=False, verbose=False)
destroy_mesh()
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_deepspeed_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.iterdir()) == []
