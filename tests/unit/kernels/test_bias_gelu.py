"""Bias and GELU: the kernel in Triton's interpreter and torch's form against the formula; compiled for GPUs."""

import pytest
import torch

from megagpt.kernels.bias_gelu import bias_gelu, reference_bias_gelu
from tests.unit.kernels.compiled import case, compile_all
from tests.unit.kernels.interpreted import NEEDS_INTERPRETER, ROUNDING, fresh_seed, largest_difference, normal

FORMS = pytest.mark.parametrize("form", ["gelu_tanh", "gelu_erf"])
# rows and columns: less than a tile, more than one along each, sizes that are no multiple of one
SHAPES = [((1, 1), 5), ((2, 3), 256), ((3, 7), 300), ((1, 40), 12), ((70, 9), 260)]


@NEEDS_INTERPRETER
@FORMS
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_kernel_equals_the_formula(form, dtype, rows, width):
    from megagpt.kernels.bias_gelu_triton import BiasGelu

    values, bias = normal(fresh_seed(), (*rows, width), (width,))
    difference = largest_difference(
        lambda x, b: (BiasGelu.apply(x, b, form),),
        lambda x, b: (reference_bias_gelu(x, b, form),),
        [values * 3, bias],
        dtype,
    )
    assert difference < ROUNDING[dtype]


@NEEDS_INTERPRETER
@FORMS
def test_kernel_of_large_values_and_of_rows_that_are_not_contiguous(form):
    from megagpt.kernels.bias_gelu_triton import BiasGelu

    values = torch.tensor([-3e4, -200.0, -12.0, 0.0, 12.0, 200.0, 3e4]).repeat(3, 1).T.requires_grad_()
    output = BiasGelu.apply(values, torch.zeros(3), form)
    (gradient,) = torch.autograd.grad(output, values, torch.ones(3, 7).T)
    torch.testing.assert_close(output, values.clamp(min=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient[:3], torch.zeros(3, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient[4:], torch.ones(3, 3), rtol=0, atol=1e-6)


@FORMS
def test_torchs_form_equals_the_formula(form):
    values, bias = normal(fresh_seed(), (4, 5, 33), (33,))
    difference = largest_difference(
        lambda x, b: (bias_gelu(x, b, form),),
        lambda x, b: (reference_bias_gelu(x, b, form),),
        [values, bias],
        torch.float64,
    )
    assert difference < 1e-13


def test_kernels_compile_for_gpus():
    cases = []
    for capability in (80, 90):
        for erf in (False, True):
            for dtype in ("*bf16", "*fp16", "*fp32"):
                sizes = {"num_rows": "i32", "width": "i32"}
                forward = dict.fromkeys(("values", "bias", "output"), dtype) | sizes
                backward = dict.fromkeys(("grad_output", "values", "bias", "grad_values"), dtype)
                backward |= {"bias_sums": "*fp32"} | sizes
                for kernel, arguments, constants in (
                    ("gelu_forward", forward, {"ERF": erf, "ROWS": 8, "COLUMNS": 256}),
                    ("gelu_backward", backward, {"ERF": erf, "STEPS": 4, "ROWS": 8, "COLUMNS": 256}),
                ):
                    signature = arguments | dict.fromkeys(constants, "constexpr")
                    cases.append(case("megagpt.kernels.bias_gelu_triton", kernel, signature, constants, capability))
    assert all(made["shared_bytes"] <= 99 * 1024 for made in compile_all(cases))
