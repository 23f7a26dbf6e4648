"""Products in float8: against the formula in float64 with the same rounding, and what the rounding itself may cost."""

import pytest
import torch

from megagpt.kernels import float8
from megagpt.kernels.float8 import (
    BACKWARD,
    FORWARD,
    cast_float8,
    cast_triton,
    check_float8,
    float8_linear,
    float8_scale,
    largest_magnitude,
    reference_cast,
    reference_float8_linear,
)
from megagpt.kernels.triton_use import has_triton
from tests.unit.kernels.compiled import case, compile_all

CPU = torch.device("cpu")
SHAPES = [(16, 16, 16), (32, 64, 48), (96, 32, 128)]  # tokens, inputs, outputs
FORMATS = pytest.mark.parametrize("dtype", [FORWARD, BACKWARD])


def fresh_generator() -> torch.Generator:
    """Another seed at every run, printed where a test fails."""
    generator = torch.Generator()
    print(f"seed {generator.seed()}")
    return generator


def inputs_of(shape: tuple[int, int, int], generator: torch.Generator) -> list[torch.Tensor]:
    tokens, inputs, outputs = shape
    values = torch.randn(tokens, inputs, generator=generator) * 3
    weight = torch.randn(outputs, inputs, generator=generator) * 0.02
    bias, upstream = torch.randn(outputs, generator=generator), torch.randn(tokens, outputs, generator=generator) * 1e-5
    return [part.bfloat16() for part in (values, weight, bias, upstream)]


def run(linear, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output and the gradients of values, weight and bias."""
    leaves = [part.clone().requires_grad_() for part in parts[:3]]
    output = linear(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, parts[3])]


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_the_formula(shape):
    parts = inputs_of(shape, fresh_generator())
    found = run(float8_linear, parts)
    wanted = run(reference_float8_linear, [part.double() for part in parts])
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        # rounding of the outputs to bf16 alone: half a unit in the last place of the largest value, 2^-9 of it
        assert float((one.double() - other).abs().max()) <= 2**-8 * float(other.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_to_float8_costs_what_the_formats_allow(shape):
    """e4m3 rounds a value by at most 2^-4 of itself, e5m2 by 2^-3, and a sum of many by far less."""
    parts = inputs_of(shape, fresh_generator())
    exact = run(torch.nn.functional.linear, [part.double() for part in parts])
    for one, other, bound in zip(run(float8_linear, parts), exact, (0.06, 0.12, 0.12, 2**-8), strict=True):
        assert float((one.double() - other).norm() / other.norm()) < bound


def test_leading_dims_and_frozen_parts():
    values = torch.randn(4, 8, 32).bfloat16()
    weight = torch.randn(48, 32).bfloat16().requires_grad_()
    output = float8_linear(values, weight)
    assert output.shape == (4, 8, 48)
    output.sum().backward()
    assert weight.grad is not None
    assert values.grad is None
    values.requires_grad_()
    float8_linear(values, weight.detach()).sum().backward()
    assert values.grad is not None


@FORMATS
@pytest.mark.parametrize("largest", [1e-38, 3e-9, 0.75, 1.0, 447.9, 448.0, 448.1, 5e4, 57344.0, 1e30])
def test_a_scale_is_the_largest_power_of_two_that_fits(dtype, largest):
    scale = float(float8_scale(torch.tensor(largest), dtype))
    most = torch.finfo(dtype).max
    counted = max(torch.tensor(largest).item(), 1e-30)
    assert scale == 2.0 ** round(torch.tensor(scale).log2().item())
    assert counted * scale <= most < 2 * counted * scale


@FORMATS
def test_zeros_stay_zeros(dtype):
    cast = cast_float8(torch.zeros(16, 16, dtype=torch.bfloat16), dtype)
    assert cast.plain is not None
    assert not cast.plain.float().any()
    assert cast.inverse_scale.isfinite()


@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_does_not_vanish(where, bad):
    parts = inputs_of((16, 32, 48), fresh_generator())
    parts[where].view(-1)[5] = bad
    found = run(float8_linear, parts)
    assert not all(bool(part.isfinite().all()) for part in found)


def test_a_device_without_float8_is_told(monkeypatch):
    check_float8(CPU)

    def refuse(*_, **__):
        raise RuntimeError("needs compute capability 8.9\nmore words")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    with pytest.raises(float8.ConfigError, match=r"fp8 = true does not work on the CPU .*8\.9; GPUs have float8 from"):
        check_float8(CPU)


def on_the_grid(rows: int, columns: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """bfloat16 values that the format holds exactly once scaled, its largest number among them."""
    bits = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    values = bits.view(dtype).float()
    values = torch.where(values.isfinite(), values, 0.0)
    values[0, 0] = torch.finfo(dtype).max
    return (values * 2.0 ** int(torch.randint(-20, 20, (), generator=generator))).bfloat16()


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
@FORMATS
@pytest.mark.parametrize(("plain", "turned"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(64, 64), (80, 144), (16, 16)])
def test_the_kernel_casts_as_torch_does(dtype, plain, turned, shape):
    """In Triton's interpreter, whose conversion of other values than the format has rounds wrongly (Triton 3.6:
    `_convert_float` drops the carry); how the GPU rounds is tested there (tests/gpu/test_float8_gpu.py).
    """
    matrix = on_the_grid(*shape, dtype, fresh_generator())
    largest = largest_magnitude(matrix)
    found, wanted = cast_triton(matrix, dtype, plain, turned, largest), cast_float8(matrix, dtype, plain, turned)
    assert torch.equal(found.inverse_scale, wanted.inverse_scale)
    for one, other in ((found.plain, wanted.plain), (found.turned, wanted.turned)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one.float(), other.float())
    assert torch.equal(reference_cast(matrix, dtype), matrix)


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_the_kernel_compiles_for_hopper():
    """Not for sm_80, which has no float8: there `check_float8` refuses."""
    pointers = {"values": "*bf16", "largest": "*fp32"}
    rest = {"rows": "i32", "columns": "i32", "most": "fp32", "least": "fp32"}
    cases = []
    for name in ("fp8e4nv", "fp8e5"):
        outputs = {"plain": f"*{name}", "turned": f"*{name}", "inverse_scale": "*fp32"}
        chosen = {"WRITE_PLAIN": True, "WRITE_TURNED": True, "BLOCK": 64}
        signature = {**pointers, **outputs, **rest, **dict.fromkeys(chosen, "constexpr")}
        cases.append(case("megagpt.kernels.float8_triton", "cast_kernel", signature, chosen, 90))
    assert all(sizes["shared_bytes"] <= 32 * 1024 for sizes in compile_all(cases))
