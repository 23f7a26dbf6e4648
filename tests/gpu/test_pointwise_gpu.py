"""The pointwise kernels on CUDA against the plain formulas in float64. No result has been recorded yet."""

import pytest
import torch

from megagpt.kernels.bias_gelu import bias_gelu, reference_bias_gelu
from megagpt.kernels.residual_norm import Branch, add_branch, add_norm, reference_add, reference_add_norm
from tests.unit.kernels.interpreted import ROUNDING, fresh_seed, largest_difference, normal

pytestmark = pytest.mark.gpu

DTYPES = pytest.mark.parametrize("dtype", list(ROUNDING))
# the family's widths, each with a number of rows that is no multiple of anything
WIDTHS = pytest.mark.parametrize(("rows", "width"), [(37, 768), (1025, 2048), (513, 2560), (67, 7168), (35, 12288)])


@DTYPES
@WIDTHS
def test_add_norm(dtype, rows, width):
    residual, output, bias, weight, shift = normal(
        fresh_seed(), (rows, 2, width), (rows, 2, width), (width,), (width,), (width,)
    )
    difference = largest_difference(
        lambda r, o, b, w, s: add_norm(r, Branch(o, b), w, s, 1e-5),
        lambda r, o, b, w, s: reference_add_norm(r, Branch(o, b), w, s, 1e-5),
        [residual, output, bias, weight + 1, shift],
        dtype,
        "cuda",
    )
    assert difference < 2 * ROUNDING[dtype]


@DTYPES
@WIDTHS
def test_add_branch(dtype, rows, width):
    difference = largest_difference(
        lambda r, o, b: (add_branch(r, Branch(o, b)),),
        lambda r, o, b: (reference_add(r, Branch(o, b)),),
        normal(fresh_seed(), (rows, 2, width), (rows, 2, width), (width,)),
        dtype,
        "cuda",
    )
    assert difference < ROUNDING[dtype]


@WIDTHS
def test_dropout_of_the_branch_repeats_by_its_seed_in_both_directions(rows, width):
    seed = fresh_seed() * 2**30
    zeros, vector = torch.zeros(rows, width, device="cuda"), torch.zeros(width, device="cuda")
    output = (zeros + 1).requires_grad_()
    state = torch.cuda.get_rng_state()
    summed = add_branch(zeros, Branch(output, vector, 0.1, seed))
    assert torch.equal(torch.cuda.get_rng_state(), state), "the default generator must not move"
    kept = summed.detach() != 0
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.01)
    torch.testing.assert_close(summed[kept], torch.full_like(summed[kept], 1 / 0.9))
    (gradient,) = torch.autograd.grad(summed.sum(), output)
    torch.testing.assert_close(gradient, summed.detach())
    normed = add_norm(zeros, Branch(output, vector, 0.1, seed), vector + 1, vector, 1e-5)[0]
    assert torch.equal(normed, summed)
    assert not torch.equal(add_branch(zeros, Branch(output, vector, 0.1, seed + 1)), summed)


@DTYPES
@pytest.mark.parametrize("form", ["gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize(("rows", "width"), [(37, 3072), (4099, 300), (65, 49152)])
def test_bias_gelu(dtype, form, rows, width):
    values, bias = normal(fresh_seed(), (rows, 1, width), (width,))
    difference = largest_difference(
        lambda x, b: (bias_gelu(x, b, form),),
        lambda x, b: (reference_bias_gelu(x, b, form),),
        [values * 2, bias],
        dtype,
        "cuda",
    )
    assert difference < ROUNDING[dtype]
