"""The CPU's attention kernel against the formula in float64, forward and backward, on fresh random inputs."""

import random

import pytest
import torch
from torch import Tensor

from megagpt.kernels.attention import attention, reference_attention
from megagpt.kernels.attention_native import native_attention, native_attention_fits

pytestmark = pytest.mark.skipif(
    not native_attention_fits(*torch.zeros(3, 1, 1, 64, 16)), reason="no AVX-512 with bfloat16, or no compiler"
)

# worst relative L2 differences of 200 random cases each: 1.1e-6 and 7.1e-3 (one rounding to bfloat16: 3.9e-3)
BOUNDS = {torch.float32: 4e-6, torch.bfloat16: 2e-2}


def random_starts(batch: int, length: int) -> Tensor:
    """First token of the document of each token, for documents of random lengths."""
    begins = torch.rand(batch, length) < random.choice([0.003, 0.03, 0.3])
    begins[:, 0] = True
    return torch.where(begins, torch.arange(length), 0).cummax(dim=1).values.int()


def random_heads(batch: int, heads: int, length: int, width: int, dtype: torch.dtype) -> Tensor:
    """[B, N, S, D] in one of the ways in which it may lie in memory, with values that make sharp scores too."""
    values = torch.randn(batch, heads, length, width) * random.choice([0.3, 1.0, 2.0])
    order = random.choice([(0, 1, 2, 3), (2, 0, 1, 3), (0, 2, 1, 3)])
    back = [order.index(dim) for dim in range(4)]
    values = values.to(dtype).permute(order).contiguous().permute(back)
    return values.requires_grad_()


def expected(query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, grad: Tensor) -> list[Tensor]:
    """Output and gradients of query, key, value by the formula in float64."""
    wide = [values.detach().double().requires_grad_() for values in (query, key, value)]
    places = torch.arange(query.shape[2])
    first = torch.zeros_like(places)[None] if starts is None else starts
    mask = (places[None, None, :] <= places[None, :, None]) & (places[None, None, :] >= first[:, :, None])
    group = query.shape[1] // key.shape[1]
    repeated = [wide[0], *(values.repeat_interleave(group, dim=1) for values in wide[1:])]
    out = reference_attention(*repeated, mask=mask[:, None])
    return [out.detach(), *torch.autograd.grad(out, wide, grad.double())]


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("trial", range(12))
def test_equals_the_formula(dtype: torch.dtype, trial: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    random.seed(seed)
    torch.manual_seed(seed)
    batch, key_heads, group = random.randint(1, 2), random.randint(1, 2), random.choice([1, 1, 3])
    length, width = 64 * random.randint(1, 5), random.choice([16, 48, 64, 80, 128])
    query = random_heads(batch, key_heads * group, length, width, dtype)
    key, value = (random_heads(batch, key_heads, length, width, dtype) for _ in range(2))
    starts = random.choice([None, random_starts(batch, length)])
    out = native_attention(query, key, value, starts)
    grad = torch.randn(out.shape).to(dtype)
    found = [out.detach(), *torch.autograd.grad(out, (query, key, value), grad)]
    right = expected(query, key, value, starts, grad)
    for name, ours, wanted in zip(("out", "query", "key", "value"), found, right, strict=True):
        assert ours.dtype == dtype
        difference = float((ours.double() - wanted).norm() / wanted.norm())
        assert difference < BOUNDS[dtype], (name, difference)


def test_threads_share_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.randn(2, 3, 128, 64).requires_grad_() for _ in range(3))
    grad = torch.randn(2, 3, 128, 64)
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        out = native_attention(query, key, value)
        results.append([out, *torch.autograd.grad(out, (query, key, value), grad)])
    for alone, together in zip(*results, strict=True):
        assert torch.equal(alone, together)


def test_the_dispatch_uses_it_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def noted(*heads: Tensor | None) -> Tensor:
        calls.append(heads[0].shape)
        return native_attention(*heads)

    monkeypatch.setattr("megagpt.kernels.attention_backends.native_attention", noted)
    for length in (64, 100):
        query, key, value = torch.randn(3, 1, 2, length, 64)
        out = attention(query, key, value, None, 0.0, None)
        torch.testing.assert_close(out, reference_attention(query, key, value), rtol=1e-5, atol=1e-5)
    assert [shape[2] for shape in calls] == [64]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 2, 100, 64), torch.float32), ((1, 2, 64, 60), torch.float32), ((1, 2, 64, 64), torch.float64)],
)
def test_what_does_not_fit_is_said(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    query, key, value = torch.zeros(3, *shape, dtype=dtype)
    assert not native_attention_fits(query, key, value)


def test_the_operator_is_registered_properly() -> None:
    """Schema, fake tensors, autograd, and compilation, as torch's own check wants them."""
    heads = [torch.randn(1, 2, 64, 16, requires_grad=True) for _ in range(3)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.megagpt.cpu_attention, (*heads, None), test_utils=tests)


@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_a_key_that_is_no_number_shows_wherever_it_is_seen(dtype: torch.dtype) -> None:
    query, key, value = torch.randn(3, 1, 1, 128, 16).to(dtype)
    key[0, 0, 70, 3] = float("nan")
    out = native_attention(query, key, value)
    assert out[0, 0, :70].isfinite().all()
    assert out[0, 0, 70:].isnan().all()
