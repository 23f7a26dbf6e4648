"""The CPU's bias and GELU kernel against the formula in float64, forward and backward, on fresh random inputs."""

import pytest
import torch

from megagpt.kernels.bias_gelu import bias_gelu, reference_bias_gelu
from megagpt.kernels.bias_gelu_native import native_bias_gelu, native_bias_gelu_fits
from tests.unit.kernels.interpreted import ROUNDING, fresh_seed, largest_difference, normal

pytestmark = pytest.mark.skipif(
    not native_bias_gelu_fits(torch.zeros(1, 16), torch.zeros(16), "gelu_tanh"),
    reason="no AVX-512 with bfloat16, or no compiler",
)
FORM = "gelu_tanh"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(1,), (3, 7), (130, 2)])
@pytest.mark.parametrize("width", [16, 48, 1024])
def test_equals_the_formula(dtype, rows, width):
    values, bias = normal(fresh_seed(), (*rows, width), (width,))
    difference = largest_difference(
        lambda x, b: (native_bias_gelu(x, b),),
        lambda x, b: (reference_bias_gelu(x, b, FORM),),
        [values * 3, bias],
        dtype,
    )
    assert difference < ROUNDING[dtype]


def test_threads_share_the_rows(monkeypatch):
    """More than rows, too; the gradient of the bias is a sum of other parts, all else is the same bits."""
    values, grad = torch.randn(2, 5, 131072).unbind()
    bias = torch.randn(131072)
    results = []
    for threads in (1, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        inputs = [values.clone().requires_grad_(), bias.clone().requires_grad_()]
        out = native_bias_gelu(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, grad)])
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])
        torch.testing.assert_close(other[2], results[0][2])


def test_large_values_and_rows_that_are_not_contiguous():
    values = torch.tensor([-3e38, -3e4, -200.0, -12.0, 0.0, 12.0, 200.0, 3e38]).repeat(16, 1).T.requires_grad_()
    out = native_bias_gelu(values, torch.zeros(16))
    (gradient,) = torch.autograd.grad(out, values, torch.ones(16, 8).T)
    torch.testing.assert_close(out, values.clamp(min=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient[:4], torch.zeros(4, 16), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient[5:], torch.ones(3, 16), rtol=0, atol=1e-6)


def test_not_a_number_stays_one():
    values = torch.full((2, 16), torch.nan, requires_grad=True)
    out = native_bias_gelu(values, torch.zeros(16))
    (gradient,) = torch.autograd.grad(out.sum(), values)
    assert out.isnan().all()
    assert gradient.isnan().all()


def test_the_dispatch_uses_it_where_it_fits(monkeypatch):
    calls = []

    def noted(values, bias):
        calls.append(values.shape[-1])
        return native_bias_gelu(values, bias)

    monkeypatch.setattr("megagpt.kernels.bias_gelu.native_bias_gelu", noted)
    for width, dtype, form in ((32, torch.float32, FORM), (33, torch.float32, FORM), (32, torch.float64, FORM)):
        values, bias = torch.randn(5, width, dtype=dtype), torch.randn(width, dtype=dtype)
        torch.testing.assert_close(bias_gelu(values, bias, form), reference_bias_gelu(values, bias, form))
    bias_gelu(torch.randn(5, 32), torch.randn(32), "gelu_erf")
    assert calls == [32]


def test_the_operator_is_registered_properly():
    """Schema, fake tensors, autograd, and compilation, as torch's own check wants them."""
    inputs = [torch.randn(3, 16, requires_grad=True), torch.randn(16, requires_grad=True)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.megagpt.cpu_bias_gelu, inputs, test_utils=tests)
