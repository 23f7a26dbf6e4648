"""A linear layer with its three matrix products in float8: the plain form, the fast form, the dispatch of its casts.

The input and the weight are cast to e4m3, the gradient to e5m2 (Micikevicius et al. 2022, FP8 Formats for Deep
Learning, §3), each with one scale a tensor, from its own largest magnitude at every use; sums are in float32, outputs
in the input's dtype. A scale is a power of two, so that scaling rounds nothing, and no scaled value passes the
format's largest number. A tensor with a value that is not finite gives an output that has some, too.

Legend: T tokens, K inputs, N outputs. Knows nothing of ranks.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from megagpt.errors import ConfigError
from megagpt.kernels.triton_use import runs_triton

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of every dim of a product: what the tensor cores take (torch, _scaled_mm)
_LEAST = 1e-30  # a smaller largest magnitude counts as this: a tensor of zeros has a scale too
_TILE = 64


class Float8Matrix(NamedTuple):
    """A matrix [R, C] in float8, as it lies or turned; times `inverse_scale` it is what was cast."""

    plain: Tensor | None  # [R, C] contiguous
    turned: Tensor | None  # [C, R] contiguous
    inverse_scale: Tensor  # [] float32


def float8_scale(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """The power of two, [] float32, by which a tensor of this largest magnitude is multiplied before it is cast.

    0 where that is infinite, and not a number where it is not one.
    """
    ratio = torch.finfo(dtype).max / largest.float().clamp(min=_LEAST)
    return torch.where(ratio > 0, torch.ldexp(torch.ones_like(ratio), torch.frexp(ratio).exponent - 1), ratio)


def reference_cast(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """What remains of a matrix in float8, in the matrix's own dtype."""
    scale = float8_scale(matrix.abs().max(), dtype)
    return (matrix.float() * scale).to(dtype).to(matrix.dtype) / scale.to(matrix.dtype)


def reference_float8_linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same with products in the tensors' own dtype, such as float64: values [T, K], weight [N, K], bias [N]."""
    output: Tensor = _ReferenceProduct.apply(values, weight)
    return output if bias is None else output + bias


class _ReferenceProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        values, weight = reference_cast(values, FORWARD), reference_cast(weight, FORWARD)
        ctx.save_for_backward(values, weight)
        return values @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        values, weight = ctx.saved_tensors
        gradient = reference_cast(gradient, BACKWARD)
        return gradient @ weight, gradient.T @ values


def check_float8(device: torch.device) -> None:
    """Raise ConfigError where this device or this torch has no matrix product in float8: it tries one."""
    ones = torch.ones(MULTIPLE, MULTIPLE, device=device).to(FORWARD)
    one = torch.ones((), device=device)
    try:
        torch._scaled_mm(ones, ones.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        raise ConfigError(
            f"train.fp8 = true does not work on {name} with torch {torch.__version__}: "
            f"{str(error).splitlines()[0]}; GPUs have float8 from compute capability 8.9 on (Ada, Hopper, Blackwell); "
            "use train.fp8 = false"
        ) from None


def float8_linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """values [..., K] times weight [N, K] transposed, plus bias [N], to [..., N]; bfloat16. T, K and N are multiples
    of MULTIPLE.

    What is kept for the backward pass is the input in float8, and the weight as it is: it is cast again there.
    """
    output: Tensor = _Float8Product.apply(values.reshape(-1, values.shape[-1]), weight, bias)
    return output.view(*values.shape[:-1], weight.shape[0])


class _Float8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast = cast_float8(values, FORWARD, turned=ctx.needs_input_grad[1])
        weight_largest = largest_magnitude(weight)
        weight8 = cast_float8(weight, FORWARD, largest=weight_largest)
        ctx.save_for_backward(cast.turned, cast.inverse_scale, weight, weight_largest)
        ctx.has_bias = bias is not None
        return _product(cast.plain, cast.inverse_scale, weight8.plain, weight8.inverse_scale, values.dtype, bias, True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        turned, inverse_scale, weight, weight_largest = ctx.saved_tensors
        needs_values, needs_weight, needs_bias = ctx.needs_input_grad
        cast = cast_float8(gradient, BACKWARD, plain=needs_values, turned=needs_weight)
        grad_values = grad_weight = None
        if needs_values:
            weight8 = cast_float8(weight, FORWARD, plain=False, turned=True, largest=weight_largest)
            grad_values = _product(
                cast.plain, cast.inverse_scale, weight8.turned, weight8.inverse_scale, gradient.dtype
            )
        if needs_weight:
            grad_weight = _product(cast.turned, cast.inverse_scale, turned, inverse_scale, weight.dtype)
        return grad_values, grad_weight, gradient.sum(0) if ctx.has_bias and needs_bias else None


def _product(
    left: Tensor | None,
    left_scale: Tensor,
    right: Tensor | None,
    right_scale: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    fast_sums: bool = False,
) -> Tensor:
    """left [M, S] times right [N, S] transposed, to [M, N]. Hopper takes both with the summed dim innermost.

    `fast_sums`: sums stay in the tensor core's own registers, of fewer bits than float32; for the forward pass.
    """
    assert left is not None, "the left matrix was not cast as it lies"
    assert right is not None, "the right matrix was not cast as it lies"
    return torch._scaled_mm(
        left, right.t(), scale_a=left_scale, scale_b=right_scale, bias=bias, out_dtype=dtype, use_fast_accum=fast_sums
    )


def largest_magnitude(matrix: Tensor) -> Tensor:
    """[] float32, in one pass and without a copy."""
    return torch.linalg.vector_norm(matrix, float("inf"), dtype=torch.float32)


def cast_float8(
    matrix: Tensor, dtype: torch.dtype, plain: bool = True, turned: bool = False, largest: Tensor | None = None
) -> Float8Matrix:
    """A matrix [R, C] in float8 as it lies, turned, or both. `largest`: its largest magnitude where that is known.

    Our Triton kernel reads it once for all of these on a GPU (unmeasured); elsewhere a pass each in torch.
    """
    matrix = matrix.contiguous()
    if largest is None:
        largest = largest_magnitude(matrix)
    if runs_triton(matrix):
        return cast_triton(matrix, dtype, plain, turned, largest)
    scale = float8_scale(largest, dtype)
    cast = (matrix * scale.to(matrix.dtype)).to(dtype)
    return Float8Matrix(cast if plain else None, cast.t().contiguous() if turned else None, 1 / scale)


def cast_triton(matrix: Tensor, dtype: torch.dtype, plain: bool, turned: bool, largest: Tensor) -> Float8Matrix:
    """The same as one kernel: a contiguous matrix on a GPU, or in Triton's interpreter."""
    from megagpt.kernels.float8_triton import cast_kernel  # imports Triton

    rows, columns = matrix.shape
    made = [
        torch.empty(shape, dtype=dtype, device=matrix.device)
        for shape, wanted in (((rows, columns), plain), ((columns, rows), turned))
        if wanted
    ]
    inverse_scale = torch.empty((), dtype=torch.float32, device=matrix.device)
    cast_kernel[(-(-rows // _TILE), -(-columns // _TILE))](
        matrix,
        largest,
        made[0],
        made[-1],
        inverse_scale,
        rows,
        columns,
        torch.finfo(dtype).max,
        _LEAST,
        WRITE_PLAIN=plain,
        WRITE_TURNED=turned,
        BLOCK=_TILE,
    )
    return Float8Matrix(made[0] if plain else None, made[-1] if turned else None, inverse_scale)
