"""Our Triton kernels of attention: in the interpreter against float64, and compiled for GPUs that are not here."""

import random

import pytest
import torch

from megagpt.kernels.attention_documents import PackedDocuments
from megagpt.kernels.triton_use import has_triton, is_interpreted
from tests.unit.kernels.attention_inputs import random_documents, random_heads, random_slopes, truth, worst
from tests.unit.kernels.compiled import case, compile_all

pytestmark = pytest.mark.skipif(not (has_triton() and is_interpreted()), reason="needs Triton's interpreter")

# measured worst over 60 random cases of the test below: 2.3e-6, 1.8e-3, 1.5e-2
BOUNDS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def run(heads, slopes, documents=None, dropout=0.0, seed=None, tiles=None):
    """Output and the three gradients."""
    from megagpt.kernels.attention_ours import own_attention

    bounds = None if documents is None else documents.bounds
    output = own_attention(*heads, bounds, dropout, seed, tiles)
    return [output, *torch.autograd.grad(output, heads, slopes)]


def small_tiles(queries: int, keys: int):
    from megagpt.kernels.attention_ours import Launch, Launches

    return Launches(Launch(queries, keys, 4, 1), Launch(keys, queries, 4, 1), Launch(queries, keys, 4, 1))


@pytest.mark.parametrize("width", [64, 80, 128, 16, 40, 72, 100])
@pytest.mark.parametrize("apart", [False, True])
def test_equals_float64_forward_and_backward(width, apart):
    """Fresh inputs in every run: any length, batch, tiles, number format and number of key heads."""
    drawn = random.SystemRandom().randrange(10**6)
    print(f"seed {drawn}")
    chosen = random.Random(drawn)
    dtype = chosen.choice(list(BOUNDS))
    group, key_heads = chosen.choice([(1, 2), (2, 1), (3, 1)])
    batch, length = chosen.choice([1, 2]), chosen.choice([1, 33, 64, 100, 130])
    heads = random_heads(drawn, batch, group * key_heads, key_heads, length, width, dtype)
    documents = None
    if apart:
        documents = PackedDocuments(random_documents(drawn, batch, length, chosen.choice([1, 5, 30, 200])))
    slopes = random_slopes(drawn + 1, heads[0])
    tiles = small_tiles(chosen.choice([16, 32, 64]), chosen.choice([16, 32]))
    found = run(heads, slopes, documents, tiles=tiles)
    errors = worst(found, truth(heads, slopes, documents))
    assert max(errors) < BOUNDS[dtype], (drawn, dtype, batch, length, group, errors)


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("width", [64, 128])
def test_tiles_of_the_gpu(dtype, width):
    """The table's own tiles, longer than a tile, with a document that ends inside one and one that fills some."""
    heads = random_heads(3, 1, 1, 1, 270, width, dtype)
    documents = PackedDocuments(torch.repeat_interleave(torch.arange(4), torch.tensor([5, 200, 1, 64]))[None].int())
    slopes = random_slopes(4, heads[0])
    errors = worst(run(heads, slopes, documents), truth(heads, slopes, documents))
    assert max(errors) < BOUNDS[dtype], errors


@pytest.mark.parametrize("width", [64, 80])
def test_dropout_is_a_function_of_its_seed_and_its_gradients_are_of_the_same_mask(width):
    length, seed, rate = 40, 2**62 + 12345, 0.25
    heads = random_heads(5, 2, 2, 2, length, width, torch.float32)
    slopes = random_slopes(6, heads[0])
    documents = PackedDocuments(random_documents(7, 2, length, 30))
    query, key, _ = heads
    one_hot = torch.eye(length, width).expand(2, 2, -1, -1).contiguous()  # shows the probabilities themselves
    whole, *_ = truth([query, key, one_hot], torch.zeros(2, 2, length, width), documents)
    output = run_forward(query, key, one_hot, documents, rate, seed).detach()
    kept = output[..., :length] != 0
    visible = documents.mask.expand(2, 2, -1, -1)
    assert not kept[~visible].any()
    weights = kept.double() / (1 - rate)
    torch.testing.assert_close(output[..., :length].double(), whole[..., :length] * weights, rtol=0, atol=1e-5)
    share, draws = float(kept[visible].double().mean()), int(visible.sum())
    assert abs(share - (1 - rate)) < 5 * (rate * (1 - rate) / draws) ** 0.5, (share, draws)
    found = run(heads, slopes, documents, rate, seed, small_tiles(16, 32))
    assert max(worst(found, truth(heads, slopes, documents, weights))) < BOUNDS[torch.float32]
    again = run(heads, slopes, documents, rate, seed, small_tiles(16, 32))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    other_tiles = run(heads, slopes, documents, rate, seed, small_tiles(32, 16))
    assert max(worst(found, [part.detach().double() for part in other_tiles])) < BOUNDS[torch.float32]
    assert not torch.equal(found[0], run(heads, slopes, documents, rate, seed + 1, small_tiles(16, 32))[0])
    assert not torch.equal(found[0], run(heads, slopes, documents, rate, seed - 2**40, small_tiles(16, 32))[0])


def run_forward(query, key, value, documents, rate, seed):
    from megagpt.kernels.attention_ours import own_attention

    return own_attention(query, key, value, documents.bounds, rate, seed, small_tiles(16, 16))


def test_other_documents_are_not_read():
    """Keys and values of other documents are NaN where no tile at the edge reaches them, and change nothing."""
    heads = random_heads(8, 1, 1, 1, 128, 16, torch.float32)
    numbers = torch.repeat_interleave(torch.arange(4), 32)[None].int()
    documents, slopes = PackedDocuments(numbers), random_slopes(9, heads[0])
    clean = run(heads, slopes, documents, tiles=small_tiles(16, 16))
    spoilt = [part.detach().clone() for part in heads]
    for part in spoilt:
        part[:, :, 32:96] = float("nan")
    found = run([part.requires_grad_() for part in spoilt], slopes, documents, tiles=small_tiles(16, 16))
    kept = torch.cat((torch.arange(32), torch.arange(96, 128)))
    for one, other in zip(found, clean, strict=True):
        assert torch.equal(one[:, :, kept], other[:, :, kept])


def test_gradients_of_a_projection_come_back_in_one_piece():
    """The parts of a projection get gradients that lie as it does: nothing is copied."""
    from megagpt.kernels.attention_ours import own_attention
    from megagpt.kernels.attention_packing import _whole, split_projection

    projected = torch.randn(32, 2, 3, 48, requires_grad=True)
    parts = split_projection(projected, 16)
    seen: list[torch.Tensor] = []
    for part in parts:
        part.retain_grad()
        part.register_hook(seen.append)
    output = own_attention(*parts, tiles=small_tiles(16, 16))
    assert output.permute(2, 0, 1, 3).is_contiguous()
    output.sum().backward()
    assert len(seen) == 3
    by_place = sorted(seen, key=lambda grad: grad.storage_offset())
    assert _whole(*by_place) == projected.shape
    assert projected.grad is not None
    again = projected.detach().clone().requires_grad_()
    query, key, value = again.unflatten(-1, (3, 16)).permute(3, 1, 2, 0, 4)
    own_attention(query, key, value, tiles=small_tiles(16, 16)).sum().backward()
    torch.testing.assert_close(projected.grad, again.grad, rtol=0, atol=0)


def kernel_cases(capability: int, dtype: str, width: int, apart: bool, dropout: bool):
    """The three kernels of products and the one of sums, with the tiles that the GPU gets."""
    from megagpt.kernels import attention_triton, attention_triton_backward
    from megagpt.kernels.attention_ours import columns, launches

    tiles = launches({"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype], width)
    kernels = {
        "forward_kernel": (attention_triton, tiles.forward),
        "key_value_kernel": (attention_triton_backward, tiles.key_value),
        "query_kernel": (attention_triton_backward, tiles.query),
    }
    main, rest = columns(width)
    cases = []
    for name, (module, tile) in kernels.items():
        constants = {"WIDTH": main, "REST": rest, "HEAD_DIM": width, "GROUP": 1, "M": tile.queries, "N": tile.keys}
        constants |= {"EVEN": True, "DOCUMENTS": apart, "DROPOUT": dropout}
        constants["PRECISION"] = "ieee" if dtype == "fp32" else "tf32"
        arguments = getattr(module, name).arg_names
        signature = {argument: kind(argument, constants, dtype) for argument in arguments}
        aligned = [argument for argument in arguments if is_aligned(argument, signature)]
        options = (capability, tile.num_warps, tile.num_stages, aligned)
        cases.append(case(module.__name__, name, signature, constants, *options))
    return cases


def kind(argument: str, constants: dict, dtype: str) -> str:
    if argument in constants:
        return "constexpr"
    if argument in ("log_sums", "deltas"):
        return "*fp32"
    if argument in ("starts", "ends"):
        return "*i32"
    if argument in ("scale", "softmax_scale", "probability", "rescale"):
        return "fp32"
    if argument == "seed":
        return "i64"
    is_number = argument in ("num_heads", "length") or argument[-2:] in ("_b", "_n", "_s")
    return "i32" if is_number else f"*{dtype}"


def is_aligned(argument: str, signature: dict[str, str]) -> bool:
    """What Triton finds at run time to be a multiple of 16, and loads and prefetches in larger pieces."""
    return signature[argument].startswith("*") or argument == "length" or argument[-2:] in ("_b", "_n", "_s")


@pytest.mark.parametrize(("capability", "most_bytes"), [(80, 163 * 1024), (90, 227 * 1024)])
@pytest.mark.parametrize("width", [64, 80, 128])
def test_compiles_for_gpus_that_are_not_here(capability, most_bytes, width):
    cases = kernel_cases(capability, "bf16", width, True, False)
    if width == 64:
        cases += kernel_cases(capability, "fp16", width, False, True)
    sizes = compile_all(cases)
    assert len(sizes) == len(cases)
    for made in sizes:
        assert 0 < made["shared_bytes"] <= most_bytes, sizes
