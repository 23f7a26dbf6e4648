"""Every way of attending that works on this GPU against the formula in float64. No result has been recorded yet."""

import pytest
import torch

from megagpt.kernels.attention import attention
from megagpt.kernels.attention_backends import BACKENDS, missing
from megagpt.kernels.attention_documents import PackedDocuments
from megagpt.kernels.attention_names import ABILITIES
from tests.unit.kernels.attention_inputs import random_documents, random_heads, random_slopes, truth, worst

pytestmark = pytest.mark.gpu

# bounds of rounding, not measured: of the probabilities, the output and the gradients, relative to the largest value
BOUNDS = {torch.bfloat16: 4 * 2**-8, torch.float16: 4 * 2**-11, torch.float32: 1e-5}
NAMES = ["auto", *BACKENDS]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def skip_unless(name: str, **asked: bool) -> None:
    """Skips what is not installed or cannot do it."""
    if name == "auto":
        return
    lacks = missing(name, torch.device("cuda"))
    if lacks is not None:
        pytest.skip(lacks)
    if not all(getattr(ABILITIES[name], what) for what, wanted in asked.items() if wanted):
        pytest.skip("it cannot do that")


def on_gpu(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Query, key and value on the device, as parts of one projection where they are so here."""
    whole = parts[0].detach()._base
    if whole is None:
        return [part.detach().cuda().requires_grad_() for part in parts]
    moved = whole.cuda()
    return [moved.as_strided(p.shape, p.stride(), p.storage_offset()).detach().requires_grad_() for p in parts]


def check(name: str, dtype: torch.dtype, width: int, length: int, mean: int | None, key_heads: int = 4) -> None:
    parts = random_heads(1, 2, 4, key_heads, length, width, dtype)
    documents = None if mean is None else PackedDocuments(random_documents(2, 2, length, mean))
    slopes = random_slopes(3, parts[0])
    heads = on_gpu(parts)
    there = None if documents is None else PackedDocuments(documents.documents.cuda())
    output = attention(*heads, there, 0.0, None, name)
    found = [output, *torch.autograd.grad(output, heads, slopes.cuda())]
    errors = worst(found, truth(parts, slopes, documents))
    assert max(errors) < BOUNDS[dtype], errors


@DTYPES
@pytest.mark.parametrize("width", [64, 80, 128])
@pytest.mark.parametrize("length", [256, 257, 1024])
@pytest.mark.parametrize("name", NAMES)
def test_causal(name, length, width, dtype):
    skip_unless(name)
    check(name, dtype, width, length, None)


@DTYPES
@pytest.mark.parametrize("width", [64, 80, 128])
@pytest.mark.parametrize("mean", [3, 100, 700])
@pytest.mark.parametrize("name", NAMES)
def test_documents(name, mean, width, dtype):
    skip_unless(name, documents=True)
    check(name, dtype, width, 1024, mean)


@pytest.mark.parametrize("mean", [None, 100])
@pytest.mark.parametrize("name", ["auto", "sdpa", "triton"])
def test_fp32(name, mean):
    skip_unless(name)
    check(name, torch.float32, 64, 300, mean)


@pytest.mark.parametrize("mean", [None, 100])
@pytest.mark.parametrize("name", ["auto", "varlen", "flash_attn", "transformer_engine", "flex", "triton"])
def test_fewer_key_heads(name, mean):
    skip_unless(name, documents=True)
    check(name, torch.bfloat16, 64, 512, mean, key_heads=2)


@DTYPES
@pytest.mark.parametrize("name", NAMES)
def test_dropout_repeats_by_its_seed(name, dtype):
    skip_unless(name, dropout=True)
    heads = on_gpu(random_heads(1, 2, 4, 4, 128, 64, dtype))
    slopes = random_slopes(2, heads[0].cpu()).cuda()

    def run(seed: int | None) -> list[torch.Tensor]:
        output = attention(*heads, None, 0.3, seed, name)
        return [output, *torch.autograd.grad(output, heads, slopes)]

    state = torch.cuda.get_rng_state()
    first = run(11)
    assert torch.equal(torch.cuda.get_rng_state(), state), "the default generator must not move"
    torch.cuda.manual_seed(5)
    again = run(11)
    # libraries add the gradient of queries in the order in which programs end: only ours and outputs are equal in bits
    assert torch.equal(again[0], first[0])
    assert max(worst(again, [part.double().cpu() for part in first])) < BOUNDS[dtype]
    assert not torch.equal(run(12)[0], first[0])
    kept_mean = torch.stack([run(seed)[0].double() for seed in range(200)]).mean(0)
    assert float((kept_mean - run(None)[0].double()).abs().mean()) < 0.05


def test_ours_gives_the_same_bits():
    heads = on_gpu(random_heads(1, 2, 4, 4, 1000, 80, torch.bfloat16))
    documents = PackedDocuments(random_documents(2, 2, 1000, 100).cuda())
    slopes = random_slopes(3, heads[0].cpu()).cuda()
    results = []
    for _ in range(3):
        output = attention(*heads, documents, 0.1, 2**62 + 1, "triton")
        results.append([output, *torch.autograd.grad(output, heads, slopes)])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_ours_dropout_has_its_rate_and_its_gradients_are_of_the_same_mask():
    length, rate, seed = 128, 0.25, 2**62 + 12345
    parts = random_heads(5, 2, 2, 2, length, 128, torch.float32)
    heads, documents = on_gpu(parts), PackedDocuments(random_documents(7, 2, length, 40))
    there, slopes = PackedDocuments(documents.documents.cuda()), random_slopes(6, parts[0])
    one_hot = torch.eye(length).expand(2, 2, -1, -1).contiguous()
    kept = attention(heads[0], heads[1], one_hot.cuda(), there, rate, seed, "triton").detach() != 0
    visible = documents.mask.expand(2, 2, -1, -1)
    share, draws = float(kept.cpu()[visible].double().mean()), int(visible.sum())
    assert abs(share - (1 - rate)) < 5 * (rate * (1 - rate) / draws) ** 0.5
    output = attention(*heads, there, rate, seed, "triton")
    found = [output, *torch.autograd.grad(output, heads, slopes.cuda())]
    assert max(worst(found, truth(parts, slopes, documents, kept.cpu().double() / (1 - rate)))) < BOUNDS[torch.float32]


def test_auto_waits_for_nothing():
    """No transfer to the host in a layer's attention, with documents or without."""
    heads = on_gpu(random_heads(1, 2, 4, 4, 512, 64, torch.bfloat16))
    numbers = random_documents(2, 2, 512, 60).cuda()
    for documents in (None, PackedDocuments(numbers)):  # once to compile
        attention(*heads, documents, 0.0, None).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for documents in (None, PackedDocuments(numbers)):
            attention(*heads, documents, 0.0, None).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@DTYPES
@pytest.mark.parametrize("newest", [1, 5])
def test_decoding_over_a_cache(dtype, newest):
    parts = random_heads(1, 2, 4, 4, 100, 64, dtype)
    slopes = random_slopes(3, parts[0])
    wanted, *_ = truth(parts, slopes, None)
    query, key, value = (part.detach().cuda() for part in parts)
    found = attention(query[:, :, -newest:], key, value, None, 0.0, None)
    assert max(worst([found], [wanted[:, :, -newest:]])) < BOUNDS[dtype]
