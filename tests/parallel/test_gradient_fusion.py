"""Weight gradients that the backward pass adds to their float32 sums itself, as apex's extension does on CUDA.

A stand-in does what the extension does, on the CPU.
"""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.parallel.cases import LayoutResult, run_layout
from tests.parallel.harness import run_ranks


def run_fused(num_ranks: int, arguments: list[str]) -> tuple[LayoutResult, int]:
    """A rank's run, and how many weight gradients were added by the stand-in."""
    from megatron.core.tensor_parallel import layers

    from megagpt.training import build

    calls = []

    def add_product(values: Tensor, gradient: Tensor, total: Tensor) -> None:
        calls.append(total.shape)
        assert total.dtype == torch.float32
        total.add_((gradient.t() @ values).float())  # rounded as where it is not fused, to be compared bit for bit

    extension = SimpleNamespace(wgrad_gemm_accum_fp32=add_product)
    with (
        patch.object(layers, "fused_weight_gradient_mlp_cuda", extension, create=True),
        patch.object(layers, "_grad_accum_fusion_available", True),
        patch.object(build, "fuses_weight_gradients", lambda plan, device: True),
    ):
        return run_layout(num_ranks, arguments), len(calls)


@pytest.mark.parametrize(
    ("num_ranks", "layout"),
    [
        (1, []),
        (2, []),
        (2, ["--parallel.tensor=2", "--parallel.sequence_parallel=true"]),
        (2, ["--parallel.pipeline=2"]),
    ],
)
def test_the_same_as_without(num_ranks: int, layout: list[str]) -> None:
    arguments = ["--train.precision=bf16", "--parallel.zero_stage=1", *layout]
    plain = run_ranks(num_ranks, run_layout, num_ranks, arguments)
    for alone, (fused, num_calls) in zip(plain, run_ranks(num_ranks, run_fused, num_ranks, arguments), strict=True):
        assert num_calls > 0
        assert fused.losses == alone.losses
        assert fused.grad_norms == alone.grad_norms
        assert fused.weights.keys() == alone.weights.keys()
        assert all(torch.equal(fused.weights[name], weight) for name, weight in alone.weights.items())
