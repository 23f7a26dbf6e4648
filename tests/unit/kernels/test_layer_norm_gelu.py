"""LayerNorm and GELU: fused against the formula in float64, forward and backward, and known values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.kernels.gelu import gelu, reference_gelu
from megagpt.kernels.layer_norm import LayerNorm, reference_layer_norm

CPU = torch.device("cpu")
# float64, values of order 1. Measured worst: LayerNorm 1.8e-15 forward, 1.1e-14 backward; GELU 1.8e-15 and 5.2e-15
TOLERANCE = 1e-13


def norm_of(weight, bias, epsilon):
    module = LayerNorm(weight.shape[0], epsilon, weight.dtype, CPU)
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    return module


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=2),
    width=st.integers(2, 33),
    epsilon=st.sampled_from([1e-12, 1e-5, 0.1]),
)
def test_layer_norm_equals_the_formula(seed, shape, width, epsilon):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, width, generator=generator, dtype=torch.float64).requires_grad_()
    weight, bias = torch.randn(2, width, generator=generator, dtype=torch.float64)
    module = norm_of(weight, bias, epsilon)
    fused, plain = module(values), reference_layer_norm(values, module.weight, module.bias, epsilon)
    torch.testing.assert_close(fused, plain, rtol=0, atol=TOLERANCE)
    upstream = torch.randn(fused.shape, generator=generator, dtype=torch.float64)
    inputs = [values, module.weight, module.bias]
    found = torch.autograd.grad((fused * upstream).sum(), inputs)
    wanted = torch.autograd.grad((plain * upstream).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        scale = float(other.abs().max()) + 1
        assert float((one - other).abs().max()) < 1e-11 * scale  # two values of nearly equal size amplify rounding


def test_layer_norm_of_known_values():
    module = norm_of(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), 0.0)
    assert module(torch.tensor([[3.0, 5.0]])).tolist() == [[-1.0, 3.0]]


def test_epsilon_counts():
    module = norm_of(torch.ones(2), torch.zeros(2), 3.0)
    assert module(torch.tensor([-1.0, 1.0])).tolist() == [-0.5, 0.5]  # variance 1: 1 / sqrt(1 + 3)


def test_layer_norm_gradients_are_those_of_finite_differences():
    values = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64).requires_grad_()
    bias = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w, b: reference_layer_norm(x, w, b, 1e-5), (values, weight, bias))


def test_layer_norm_in_bfloat16_computes_in_float32():
    """A large mean would be lost in bfloat16 sums; only the rounding of input and output may show."""
    values = (torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) + 50).bfloat16()
    module = norm_of(torch.ones(256), torch.zeros(256), 1e-5).bfloat16()
    exact = reference_layer_norm(values.double(), torch.ones(256), torch.zeros(256), 1e-5)
    assert module(values).dtype == torch.bfloat16
    assert ((module(values).double() - exact).abs() / exact.abs().clamp(min=1)).max() < 2**-8
    plain = reference_layer_norm(values, module.weight, module.bias, 1e-5)
    assert ((plain.double() - exact).abs() / exact.abs().clamp(min=1)).max() < 2**-8


def test_gelu_of_known_values():
    """x Φ(x) with Φ(1) = 0.841344746068543; the tanh form by its formula."""
    one = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    assert gelu(one, "gelu_erf").tolist() == pytest.approx([0.841344746068543, 0.0, -0.158655253931457], abs=1e-15)
    tanh = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))
    assert gelu(one, "gelu_tanh").tolist() == pytest.approx([tanh, 0.0, tanh - 1], abs=1e-15)


@pytest.mark.parametrize("form", ["gelu_tanh", "gelu_erf"])
def test_gelu_equals_its_formula(form):
    values = torch.linspace(-12, 12, 4001, dtype=torch.float64).requires_grad_()
    fused, plain = gelu(values, form), reference_gelu(values, form)
    torch.testing.assert_close(fused, plain, rtol=0, atol=TOLERANCE)
    (found,) = torch.autograd.grad(fused.sum(), values)
    (wanted,) = torch.autograd.grad(plain.sum(), values)
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
    few = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gelu(x, form), (few,))


def test_the_two_forms_differ():
    """By up to 4.7e-4 (near 2.3 and -2.3), which an export must not confuse."""
    values = torch.linspace(-4, 4, 801, dtype=torch.float64)
    difference = (gelu(values, "gelu_tanh") - gelu(values, "gelu_erf")).abs().max()
    assert 4.5e-4 < difference < 5e-4
