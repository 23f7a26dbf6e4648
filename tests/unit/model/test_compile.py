"""train.compile: the same model, and a steady step that breaks no graph and compiles nothing again."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from megagpt.errors import ConfigError
from megagpt.kernels.compiled import check_compile
from tests.unit.model.small import random_batch, random_parameters, small_spec, whole_chunk

SPEC = small_spec(num_layers=2, hidden_dropout=0.1)
PARAMETERS = random_parameters(SPEC)
CPU = torch.device("cpu")


def step(chunk, seed: int, dropout_seed: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and gradients of a micro-batch."""
    chunk.zero_grad(set_to_none=True)
    losses = chunk(random_batch(SPEC, seed), None, dropout_seed)
    losses.mean().backward()
    return losses.detach(), {name: parameter.grad.clone() for name, parameter in chunk.named_parameters()}


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_regions_change_nothing(mesh, recompute):
    """Losses and gradients with and without dropout, whose masks are the same; fp32."""
    plain = whole_chunk(SPEC, mesh, PARAMETERS, recompute)
    compiled = whole_chunk(SPEC, mesh, PARAMETERS, recompute, compiles=True)
    for dropout_seed in (None, 5):
        losses, gradients = step(plain, 1, dropout_seed)
        found, found_gradients = step(compiled, 1, dropout_seed)
        torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                found_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())
            )


@pytest.mark.parametrize("dropout_seed", [None, 1])
def test_a_steady_step_breaks_no_graph_and_compiles_nothing(mesh, dropout_seed):
    torch._dynamo.reset()
    counters.clear()
    chunk = whole_chunk(SPEC, mesh, PARAMETERS, compiles=True)
    step(chunk, 1, dropout_seed)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 3  # bias and GELU; residual sum and norm; residual sum: one each, for all layers
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2, 6):
            step(chunk, seed, None if dropout_seed is None else seed)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    assert not counters["recompiles"]


def test_other_shapes_compile_again_and_evaluation_does_not_compile(mesh):
    """What the test above counts does grow where it should."""
    torch._dynamo.reset()
    counters.clear()
    chunk = whole_chunk(SPEC, mesh, PARAMETERS, compiles=True)
    chunk.eval()
    chunk(random_batch(SPEC, 1), None, None)
    assert not counters["stats"]["unique_graphs"]
    chunk.train()
    for size in (1, 2):
        chunk(random_batch(SPEC, 1, size=size), None, None)
    assert counters["stats"]["unique_graphs"] == 6


def test_a_missing_compiler_is_said(monkeypatch):
    check_compile(CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"train\.compile = true needs a C\+\+ compiler on CPUs; install g\+\+"):
        check_compile(CPU)
