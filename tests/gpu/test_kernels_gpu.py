"""Kernels on CUDA in half precision against the plain references in float64. No result has been recorded yet."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from megagpt.kernels.cross_entropy import VocabColumns, cross_entropy_in_place, reference_cross_entropy
from megagpt.kernels.dropout import dropout
from megagpt.kernels.gelu import gelu, reference_gelu
from megagpt.kernels.head_chunks import HeadChunks
from megagpt.kernels.layer_norm import LayerNorm, reference_layer_norm
from megagpt.kernels.output_head import head_loss, reference_head_loss

pytestmark = pytest.mark.gpu

# bounds of rounding, not measured: a few units in the last place of values of order 1
BOUND = {torch.bfloat16: 4 * 2**-8, torch.float16: 4 * 2**-11}
DTYPES = pytest.mark.parametrize("dtype", list(BOUND))


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(fused, plain, inputs: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Output and gradients of `fused` on CUDA in `dtype` against `plain` in float64, from the same rounded inputs."""
    on_gpu = [value.to("cuda", dtype).requires_grad_() for value in inputs]
    exact = [value.detach().double().cpu().requires_grad_() for value in on_gpu]
    found, wanted = fused(*on_gpu), plain(*exact)
    upstream = randn(99, *wanted.shape)
    pairs = [(found.detach(), wanted.detach())]
    pairs += zip(
        torch.autograd.grad((found * upstream.to(found.device, found.dtype)).sum(), on_gpu),
        torch.autograd.grad((wanted * upstream).sum(), exact),
        strict=True,
    )
    for one, other in pairs:
        difference = (one.double().cpu() - other).abs().max() / other.abs().max().clamp(min=1)
        assert float(difference) < BOUND[dtype]


@DTYPES
@pytest.mark.parametrize("form", ["gelu_tanh", "gelu_erf"])
def test_gelu(dtype, form):
    check(lambda x: gelu(x, form), lambda x: reference_gelu(x, form), [randn(1, 100, 300) * 3], dtype)


@DTYPES
def test_layer_norm(dtype):
    module = LayerNorm(768, 1e-5, dtype, torch.device("cuda"))
    weight, bias = randn(2, 768) + 1, randn(3, 768)
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    exact = [value.detach().double().cpu() for value in (module.weight, module.bias)]
    check(module, lambda x: reference_layer_norm(x, *exact, 1e-5), [randn(1, 64, 768)], dtype)


@pytest.fixture(scope="module")
def alone() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("nccl", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


@DTYPES
@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize("width", [1024, 6400, 50304])
def test_cross_entropy(alone, dtype, form, width):
    vocab = width - 24
    labels = torch.randint(0, vocab, (128,), generator=torch.Generator().manual_seed(0))
    weights = torch.rand(128, generator=torch.Generator().manual_seed(1))
    found = (randn(1, 128, width) * 3).to("cuda", dtype)
    exact = found.double().cpu().requires_grad_()
    wanted = reference_cross_entropy(exact, labels, vocab)
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), exact)
    columns = VocabColumns(vocab, 0, alone)
    losses = cross_entropy_in_place(found, labels.cuda(), columns, weights.cuda(), form)
    assert float((losses.double().cpu() - wanted.detach()).abs().max()) < 1e-5
    assert float((found.double().cpu() - gradient).abs().max()) < BOUND[dtype]
    assert not found[:, vocab:].any()


@DTYPES
@pytest.mark.parametrize(("tokens", "wide"), [(100, True), (256, True), (100, False)])
def test_output_head_in_chunks(alone, dtype, tokens, wide):
    """Also that this version of torch sums products of half precision into float32 within a GEMM."""
    if dtype == torch.float16 and not wide:
        pytest.skip("fp16 always sums in float32")
    labels = torch.randint(0, 1000, (64, 4), generator=torch.Generator().manual_seed(0))
    weights = (torch.rand(64, 4, generator=torch.Generator().manual_seed(1)) > 0.2).float()
    chunks = HeadChunks(tokens, -(-256 // tokens), wide)
    columns = VocabColumns(1000, 0, alone)
    check(
        lambda h, w: head_loss(h, w, labels.cuda(), weights.cuda(), columns, chunks=chunks),
        lambda h, w: reference_head_loss(h, w, labels, weights, 1000),
        [randn(1, 64, 4, 128), randn(2, 1024, 128) * 0.2],
        dtype,
    )


@DTYPES
def test_dropout(dtype):
    values = (torch.rand(1000, 1000) + 1).to("cuda", dtype)
    found = dropout(values, 0.1, 3)
    assert torch.equal(dropout(values, 0.1, 3), found)
    kept = found != 0
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.003)
    assert (found[kept].double().sum() / values[kept].double().sum()).item() == pytest.approx(1 / 0.9, rel=1e-4)
