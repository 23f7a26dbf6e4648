"""Attention against the formula written out query by query, in float64, forward and backward."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megagpt.kernels.attention import attention, reference_attention
from megagpt.kernels.attention_documents import PackedDocuments, causal_mask, document_mask
from tests.unit.kernels.attention_inputs import random_documents as documents_of

# float64, values of order 1: measured worst over 200 random shapes 1.4e-15 forward and 3.2e-15 backward
TOLERANCE = 1e-13


def by_hand(query: Tensor, key: Tensor, value: Tensor, visible) -> Tensor:
    """One query at a time over the keys that it may see; `visible(b, q, k)` says which."""
    batch, heads, num_queries, width = query.shape
    out = torch.zeros_like(query)
    for b in range(batch):
        for n in range(heads):
            for q in range(num_queries):
                keys = [k for k in range(key.shape[2]) if visible(b, q, k)]
                scores = [float(query[b, n, q] @ key[b, n, k]) / math.sqrt(width) for k in keys]
                weights = [math.exp(score - max(scores)) for score in scores]
                for weight, k in zip(weights, keys, strict=True):
                    out[b, n, q] += weight / sum(weights) * value[b, n, k]
    return out


def random_inputs(seed: int, batch: int, heads: int, queries: int, keys: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, queries, width), (batch, heads, keys, width), (batch, heads, keys, width)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def random_documents(seed: int, batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) > 0.7).cumsum(1).to(torch.int32)


@pytest.mark.parametrize(
    "attend", [reference_attention, lambda q, k, v, mask=None: attention(q, k, v, mask, 0.0, None)]
)
def test_both_forms_equal_the_formula(attend):
    query, key, value = random_inputs(0, 2, 3, 5, 5, 4)
    found = attend(query, key, value)
    wanted = by_hand(query.detach(), key.detach(), value.detach(), lambda b, q, k: k <= q)
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k, v, documents: reference_attention(q, k, v, document_mask(documents)),
        lambda q, k, v, documents: attention(q, k, v, PackedDocuments(documents), 0.0, None),
    ],
)
def test_documents_are_kept_apart(attend):
    query, key, value = random_inputs(1, 2, 2, 9, 9, 4)
    documents = random_documents(3, 2, 9)
    assert documents.max() > 1
    found = attend(query, key, value, documents)
    wanted = by_hand(
        query.detach(), key.detach(), value.detach(), lambda b, q, k: k <= q and documents[b, q] == documents[b, k]
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 17),
    earlier=st.sampled_from([0, 0, 1, 5, 30]),
    width=st.integers(1, 9),
    mean=st.sampled_from([None, 1, 3, 80]),
)
def test_fused_equals_reference_forward_and_backward(seed, batch, heads, queries, earlier, width, mean):
    """Any shape: documents over several pieces, and decoding with keys from a cache, which stand before the queries."""
    queries, earlier = (queries, earlier) if mean is None else (queries * 13, 0)
    inputs = random_inputs(seed, batch, heads, queries, queries + earlier, width)
    numbers = None if mean is None else documents_of(seed, batch, queries, mean)
    packed = None if numbers is None else PackedDocuments(numbers)
    mask = None if numbers is None else document_mask(numbers)
    fused, plain = attention(*inputs, packed, 0.0, None), reference_attention(*inputs, mask)
    torch.testing.assert_close(fused, plain, rtol=0, atol=TOLERANCE)
    weight = torch.randn(fused.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gradients = torch.autograd.grad((fused * weight).sum(), inputs)
    expected = torch.autograd.grad((plain * weight).sum(), inputs)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_decoding_with_a_cache_equals_the_last_rows_of_the_whole(dtype):
    query, key, value = (part.detach().to(dtype) for part in random_inputs(5, 1, 2, 12, 12, 8))
    whole = attention(query, key, value, None, 0.0, None)
    atol = TOLERANCE if dtype == torch.float64 else 1e-6
    for newest in (1, 2, 7):
        part = attention(query[:, :, -newest:], key, value, None, 0.0, None)
        torch.testing.assert_close(part, whole[:, :, -newest:], rtol=0, atol=atol)


def test_gradients_are_those_of_finite_differences():
    inputs = random_inputs(7, 1, 2, 4, 6, 3)
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, None, 0.0, None), inputs)
    assert torch.autograd.gradcheck(reference_attention, inputs)


def test_half_precision_reference_takes_its_softmax_in_float32():
    query, key, value = (part.detach() for part in random_inputs(9, 1, 2, 32, 32, 16))
    exact = reference_attention(query, key, value)
    found = reference_attention(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() < 0.03  # measured 0.015


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (3, 3), (1, 4), (2, 5)])
def test_causal_mask_ends_in_the_corner(queries, keys):
    mask = causal_mask(queries, keys, torch.device("cpu"))
    for q in range(queries):
        for k in range(keys):
            assert bool(mask[q, k]) == (k <= q + keys - queries)


def test_document_mask():
    mask = document_mask(torch.tensor([[0, 0, 1, 1]], dtype=torch.int32))
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_dropout_repeats_by_its_seed_and_leaves_the_generator_alone():
    inputs = [part.detach().float() for part in random_inputs(2, 2, 2, 16, 16, 8)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = attention(*inputs, None, 0.3, 11)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(attention(*inputs, None, 0.3, 11), first)
    assert not torch.equal(attention(*inputs, None, 0.3, 12), first)
    without = attention(*inputs, None, 0.3, None)
    assert torch.equal(without, attention(*inputs, None, 0.0, 11))
    assert not torch.allclose(without, first)


def test_dropout_drops_probabilities_and_keeps_their_mean():
    """With values of one the output is the sum of the kept, rescaled probabilities: 1 on average."""
    query, key, _ = (part.detach().float() for part in random_inputs(4, 8, 8, 64, 64, 8))
    ones = torch.ones(8, 8, 64, 64)
    found = attention(query, key, ones, None, 0.25, 3)
    # rows late in the sequence average many probabilities; 8 * 8 * 32 rows: standard error about 0.003
    assert found[:, :, 32:, 0].mean().item() == pytest.approx(1.0, abs=0.02)
    first = found[:, :, 0, 0]  # one key alone: kept (4 / 3) or dropped (0)
    assert first.unique().tolist() == pytest.approx([0.0, 4 / 3])
