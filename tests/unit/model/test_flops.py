"""model/cost.py against torch's FLOP counter on the real model: every operation of a step, exactly."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megagpt.model.cost import FlopsPerToken, flops_per_token
from megagpt.model.spec import ModelSpec
from megagpt.parallel.mesh import Mesh, build_mesh, destroy_mesh
from tests.unit.model.small import random_batch, random_parameters, small_spec, whole_chunk

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))
from flops import CountedFlops

SEQUENCES = 3


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    yield build_mesh(1, 1)
    destroy_mesh()


def counted(counter: FlopCounterMode, spec: ModelSpec, mesh: Mesh, recompute: str = "none") -> int:
    """Operations of one micro-batch, forward and backward."""
    chunk, batch = whole_chunk(spec, mesh, random_parameters(spec), recompute), random_batch(spec, 1, SEQUENCES)
    with counter:
        chunk(batch, None, 3 if spec.hidden_dropout else None).sum().backward()
    return counter.get_total_flops()


def of_the_batch(flops_a_token: float, spec: ModelSpec) -> float:
    return flops_a_token * SEQUENCES * spec.sequence_length


SHAPES = {
    "small": {},
    "one layer": {"num_layers": 1},
    "deep": {"num_layers": 7},
    "wide": {"hidden_size": 96},
    "long": {"sequence_length": 160},
    "blocks of our own attention": {"sequence_length": 128, "hidden_size": 64},
    "wide feed-forward": {"ffn_hidden_size": 250},
    "head dim 64": {"hidden_size": 128, "num_heads": 2},
    "head dim 80": {"hidden_size": 160, "num_heads": 2},
    "large vocabulary": {"vocab_size": 1000, "padded_vocab_size": 1024},
    "no padding": {"vocab_size": 128},
    "erf": {"activation": "gelu_erf"},
    "dropout on hidden states": {"hidden_dropout": 0.1},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_costs_what_is_said(mesh: Mesh, shape: str) -> None:
    """Not an operation more or less: linears, attention, head, forward and backward."""
    spec = small_spec(**SHAPES[shape])
    assert counted(CountedFlops(), spec, mesh) == of_the_batch(flops_per_token(spec).total, spec)


@pytest.mark.parametrize("shape", ["small", "long", "head dim 80"])
def test_a_step_costs_what_torch_counts_of_plain_attention(mesh: Mesh, shape: str) -> None:
    """torch's counter as it is, attention in plain matrix products, at lengths that our own kernel leaves to torch."""
    spec = small_spec(**SHAPES[shape])
    with sdpa_kernel(SDPBackend.MATH):
        found = counted(FlopCounterMode(display=False), spec, mesh)
    assert found == of_the_batch(flops_per_token(spec).total, spec)


def test_attention_dropout_costs_the_same(mesh: Mesh) -> None:
    spec = small_spec(attention_dropout=0.1, hidden_dropout=0.1)
    assert counted(CountedFlops(), spec, mesh) == of_the_batch(flops_per_token(spec).total, spec)


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputation_costs_another_forward_pass_of_what_is_recomputed(mesh: Mesh, recompute: str) -> None:
    """Which model FLOPs leave out."""
    spec = small_spec()
    flops = flops_per_token(spec)
    again = flops.attention / 3 if recompute == "selective" else (flops.layers + flops.attention) / 3
    assert counted(CountedFlops(), spec, mesh, recompute) == of_the_batch(flops.total + again, spec)


def test_a_mistaken_formula_would_be_seen(mesh: Mesh) -> None:
    """The causal half of attention, the padding of the vocabulary, one layer: each is more than no difference."""
    spec = small_spec()
    found = counted(CountedFlops(), spec, mesh) / of_the_batch(1, spec)
    flops = flops_per_token(spec)
    for wrong in (
        FlopsPerToken(flops.layers, flops.attention // 2, flops.head, 0),
        FlopsPerToken(flops.layers, flops.attention, 6 * spec.hidden_size * spec.vocab_size, 0),
        flops_per_token(small_spec(num_layers=2)),
    ):
        assert found != wrong.total
    assert found == flops.total


def test_fused_attention_is_counted_as_plain() -> None:
    """The benchmark's table of attention operators against torch's count of the same in matrix products."""
    inputs = [torch.randn(2, 3, 40, 16, requires_grad=True) for _ in range(3)]
    totals = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend), CountedFlops() as counter:
            torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] == 3 * 2 * 2 * 2 * 3 * 40 * 40 * 16
