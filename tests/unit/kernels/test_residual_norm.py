"""Bias, dropout, residual sum and norm: kernel and torch's form against the formula, the mask, compiled for GPUs."""

import pytest
import torch

from megagpt.kernels.dropout import dropout
from megagpt.kernels.residual_norm import (
    Branch,
    ResidualNorm,
    add_branch,
    add_norm,
    reference_add,
    reference_add_norm,
)
from tests.unit.kernels.compiled import case, compile_all
from tests.unit.kernels.interpreted import NEEDS_INTERPRETER, ROUNDING, fresh_seed, largest_difference, normal

EPSILON = 1e-5
SHAPES = [((1,), 4), ((1, 1), 7), ((2, 3), 64), ((3, 5), 300), ((10, 2), 96), ((4,), 2560)]


def inputs(seed, rows, width):
    residual, output, *vectors = normal(seed, (*rows, width), (*rows, width), (width,), (width,), (width,))
    return [residual, output, *vectors]


def plain_norm(residual, output, bias, weight, norm_bias):
    return reference_add_norm(residual, Branch(output, bias), weight, norm_bias, EPSILON)


@NEEDS_INTERPRETER
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_kernel_with_norm_equals_the_formula(dtype, rows, width):
    from megagpt.kernels.residual_norm_triton import AddNorm

    difference = largest_difference(
        lambda *given: AddNorm.apply(*given, EPSILON, 0.0, None), plain_norm, inputs(fresh_seed(), rows, width), dtype
    )
    # the norm's gradient sees the sum rounded: two roundings
    assert difference < 2 * ROUNDING[dtype]


@NEEDS_INTERPRETER
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_kernel_without_norm_equals_the_formula(dtype, rows, width):
    from megagpt.kernels.residual_norm_triton import AddNorm

    difference = largest_difference(
        lambda *given: AddNorm.apply(*given, None, None, 0.0, 0.0, None)[:1],
        lambda residual, output, bias: (reference_add(residual, Branch(output, bias)),),
        inputs(fresh_seed(), rows, width)[:3],
        dtype,
    )
    assert difference < ROUNDING[dtype]


@NEEDS_INTERPRETER
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize(("rows", "width"), SHAPES[2:])
def test_kernel_with_dropout_equals_the_formula_with_its_mask(norms, rows, width):
    """The mask that the kernel shows on ones and zeros is the one of its forward and of its backward pass."""
    from megagpt.kernels.residual_norm_triton import AddNorm

    seed, probability = fresh_seed() * 2**30, 0.3  # past 32 bits
    zeros = torch.zeros(*rows, width)
    shown = AddNorm.apply(zeros, zeros + 1, torch.zeros(width), None, None, 0.0, probability, seed)[0]
    mask = shown.double()
    torch.testing.assert_close(mask[mask != 0], torch.full_like(mask[mask != 0], 1 / 0.7), rtol=1e-6, atol=0)
    tail = (EPSILON, probability, seed)

    def formula(residual, output, bias, weight=None, norm_bias=None):
        dropped = Branch((output + bias) * mask, torch.zeros(width, dtype=torch.float64))
        if weight is None:
            return (reference_add(residual, dropped),)
        return reference_add_norm(residual, dropped, weight, norm_bias, EPSILON)

    def kernel(*given):
        return AddNorm.apply(*given, *tail) if norms else AddNorm.apply(*given, None, None, *tail)[:1]

    given = inputs(seed % 2**31, rows, width)[: 5 if norms else 3]
    assert largest_difference(kernel, formula, given, torch.float32) < 2 * ROUNDING[torch.float32]


@NEEDS_INTERPRETER
def test_mask_of_the_kernel_is_random_and_a_pure_function_of_its_seed():
    from megagpt.kernels.residual_norm_triton import AddNorm

    def kept(seed, probability=0.5, rows=256):
        zeros = torch.zeros(rows, 512)
        return AddNorm.apply(zeros, zeros + 1, zeros[0], None, None, 0.0, probability, seed)[0] != 0

    first = kept(2**62 + 11)
    assert torch.equal(kept(2**62 + 11), first)
    assert torch.equal(kept(2**62 + 11, rows=40), first[:40])  # a row's mask does not depend on the others
    for other in (kept(2**62 + 12), kept(11)):  # neither half of the seed is lost
        assert float((other == first).double().mean()) == pytest.approx(0.5, abs=0.01)  # standard error 0.0014
    signs = first.double() - 0.5
    assert float(signs.mean(0).abs().max()) < 0.17  # 256 draws: standard error 0.031
    assert float(signs.mean(1).abs().max()) < 0.12  # 512 draws: standard error 0.022
    for shift in (1, 2, 3, 4, 8):  # the four draws of a call, and neighbouring calls
        assert abs(float((signs[:, shift:] * signs[:, :-shift]).mean()) * 4) < 0.015  # standard error 0.0028
    assert abs(float((signs[1:] * signs[:-1]).mean()) * 4) < 0.015
    for probability in (0.01, 0.1, 0.9):
        assert float(kept(3, probability).double().mean()) == pytest.approx(1 - probability, abs=0.007)


def test_torchs_form_equals_the_formula():
    given = inputs(fresh_seed(), (3, 4), 33)
    module = ResidualNorm(33, EPSILON, torch.float64, torch.device("cpu"))

    def of_module(residual, output, bias, weight, norm_bias):
        module.weight, module.bias = torch.nn.Parameter(weight), torch.nn.Parameter(norm_bias)
        summed, normed = module(residual, Branch(output, bias))
        one = add_norm(residual, Branch(output, bias), weight, norm_bias, EPSILON)
        assert torch.equal(summed, one[0])
        assert torch.equal(normed, one[1])
        return one

    assert largest_difference(of_module, plain_norm, given, torch.float64) < 1e-12


def test_torchs_form_drops_the_branch_with_its_bias_and_nothing_else():
    residual, output, bias, weight, norm_bias = inputs(fresh_seed(), (3, 4), 33)
    branch = Branch(output, bias, 0.4, 17)
    summed, normed = add_norm(residual, branch, weight, norm_bias, EPSILON)
    assert torch.equal(summed, residual + dropout(output + bias, 0.4, 17))
    assert torch.equal(summed, add_branch(residual, branch))
    wanted = torch.nn.functional.layer_norm(summed, (33,), weight, norm_bias, EPSILON)
    assert torch.equal(normed, wanted)


def gpu_cases(capability, dtype, width, num_warps, drops, norms):
    module = "megagpt.kernels.residual_norm_triton"
    block = 1 << (width - 1).bit_length()
    numbers = {"seed": "i64", "threshold": "i64", "keep_scale": "fp32"}
    flags = {"DROPS": drops, "NORMS": norms}
    of_norm = {"add_forward": "weight norm_bias normed means scales"}
    of_norm["add_backward"] = "grad_normed summed weight means scales"

    def compiled(kernel, arguments, constants):
        constants = flags | constants | ({} if norms else dict.fromkeys(of_norm[kernel].split()))
        signature = arguments | dict.fromkeys(constants, "constexpr")
        return case(module, kernel, signature, constants, capability, num_warps)

    rows = dict.fromkeys(("residual", "branch", "bias", "weight", "norm_bias", "summed", "normed"), dtype)
    forward = rows | {"means": "*fp32", "scales": "*fp32", "width": "i32", "epsilon": "fp32"} | numbers
    forward |= dict.fromkeys(flags, "constexpr")
    rows = dict.fromkeys(("grad_summed", "grad_normed", "summed", "weight"), dtype) | {"means": "*fp32"}
    rows |= {"scales": "*fp32", "grad_residual": dtype, "grad_branch": dtype, "vector_sums": "*fp32"}
    backward = rows | {"num_rows": "i32", "width": "i32"} | numbers | dict.fromkeys(flags, "constexpr")
    return [
        compiled("add_forward", forward, {"BLOCK": block}),
        compiled("add_backward", backward, {"STEPS": 8, "BLOCK": block}),
    ]


def test_kernels_compile_for_gpus():
    """The family's narrowest and widest model, each with the warps that the kernels are given."""
    from megagpt.kernels.residual_norm_triton import _block

    cases = []
    for capability in (80, 90):
        for width in (768, 12288):
            for dtype, drops, norms in (
                ("*bf16", False, True),
                ("*fp16", True, True),
                ("*fp32", True, False),
                ("*bf16", False, False),
            ):
                cases += gpu_cases(capability, dtype, width, _block(width)[1], drops, norms)
    assert all(made["shared_bytes"] <= 99 * 1024 for made in compile_all(cases))
