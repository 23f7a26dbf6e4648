"""Cross-entropy of a chunk of logits against torch's own in float64: losses, gradients in place, padding columns.

All forms: torch's operations, the CPU's kernel, and the Triton kernel, which Triton's interpreter runs here.
"""

import math
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megagpt.kernels import cross_entropy
from megagpt.kernels.cross_entropy import VocabColumns, cross_entropy_in_place, reference_cross_entropy
from megagpt.kernels.cross_entropy_native import native_rows, native_rows_fit
from tests.parallel.harness import run_ranks
from tests.unit.kernels.compiled import case, compile_all

# float64, measured worst 1.8e-15
TOLERANCE = 1e-13
SHAPES = [(7, 5, 8), (12, 11, 16), (30, 128, 128), (1, 2, 64), (9, 1000, 1024)]
FORMS = pytest.mark.parametrize(
    "form",
    [
        "torch",
        "triton",
        pytest.param(
            "native", marks=pytest.mark.skipif(not native_rows_fit(torch.zeros(1, 1)), reason="no AVX-512, no compiler")
        ),
    ],
)


@pytest.fixture(scope="module")
def alone():
    """A group of this one process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def fresh_seed():
    """Another one at each run; printed, so that a failure can be made again."""
    seed = time.time_ns() % 2**31
    print("seed", seed)
    return seed


def random_case(seed, num_tokens, vocab, padded, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, padded, generator=generator, dtype=torch.float64) * scale
    logits[:, vocab:] += 1e4  # what stands in padding columns must not matter
    labels = torch.randint(0, vocab, (num_tokens,), generator=generator)
    weights = torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    weights[0] = 0.0  # a token that does not count
    return logits, labels, weights


def torch_loss_and_gradient(logits, labels, weights, vocab):
    whole = logits[:, :vocab].detach().double().requires_grad_()
    losses = F.cross_entropy(whole, labels, reduction="none")
    (gradient,) = torch.autograd.grad((losses * weights).sum(), whole)
    return losses.detach(), F.pad(gradient, (0, logits.shape[-1] - vocab))


@pytest.mark.parametrize(("num_tokens", "vocab", "padded"), SHAPES)
@pytest.mark.parametrize("block_values", [1, 40, 1 << 17])
def test_one_rank_equals_torch(alone, monkeypatch, num_tokens, vocab, padded, block_values):
    monkeypatch.setitem(cross_entropy._BLOCK_VALUES, "cpu", block_values)
    logits, labels, weights = random_case(fresh_seed(), num_tokens, vocab, padded)
    wanted, wanted_gradient = torch_loss_and_gradient(logits, labels, weights, vocab)
    torch.testing.assert_close(reference_cross_entropy(logits, labels, vocab), wanted, rtol=0, atol=TOLERANCE)
    columns = VocabColumns(vocab, 0, alone)
    before = logits.clone()
    losses = cross_entropy_in_place(logits, labels, columns)
    torch.testing.assert_close(losses, wanted, rtol=0, atol=TOLERANCE)
    assert torch.equal(logits, before), "without weights the logits stay"
    assert torch.equal(cross_entropy_in_place(logits, labels, columns, weights), losses)
    torch.testing.assert_close(logits, wanted_gradient, rtol=0, atol=TOLERANCE)
    assert torch.equal(logits[:, vocab:], torch.zeros_like(logits[:, vocab:]))
    assert torch.equal(logits[0], torch.zeros_like(logits[0]))


@FORMS
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_stay_finite(alone, size, form):
    """One score far from the others: the loss is that distance or zero, never inf or nan."""
    logits = torch.zeros(2, 8, dtype=torch.float32)
    logits[:, 2] = size
    columns = VocabColumns(6, 0, alone)
    losses = cross_entropy_in_place(logits, torch.tensor([2, 3]), columns, torch.ones(2), form)
    if size > 0:
        assert losses.tolist() == [0.0, size]
    else:
        assert losses.tolist() == pytest.approx([-size + math.log(5), math.log(5)])
    assert bool(logits.isfinite().all())


@FORMS
def test_what_is_not_finite_stays_so(alone, form):
    """A model that diverged must not look healthy: also not where the token does not count."""
    logits = torch.zeros(2, 8)
    logits[0, 1], logits[1, 3] = math.nan, math.inf
    losses = cross_entropy_in_place(logits, torch.tensor([2, 3]), VocabColumns(6, 0, alone), torch.zeros(2), form)
    assert not losses.isfinite().any()
    assert not logits.isfinite().all(dim=1).any()


@FORMS
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11), (torch.float32, 1e-6)])
def test_half_precision_logits_give_float32_losses(alone, dtype, bound, form):
    if form == "native" and dtype == torch.float16:
        pytest.skip("the CPU's kernel knows bf16 and fp32")
    logits, labels, weights = random_case(fresh_seed(), 30, 100, 128)
    logits = logits.to(dtype)
    weights = weights.float()
    wanted, wanted_gradient = torch_loss_and_gradient(logits, labels, weights.double(), 100)
    losses = cross_entropy_in_place(logits, labels, VocabColumns(100, 0, alone), weights, form)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-6, atol=2e-6)
    assert (
        float((logits.double() - wanted_gradient).abs().max()) < bound
    )  # rounding of values up to 1, in float32 of the log-sum-exp


@FORMS
def test_a_sure_prediction_keeps_its_small_gradient(alone, form):
    """1 - p of 2e-4, 2e-8 and 2e-12 at the label, whose p rounds to 1 in float32 long before."""
    logits = torch.zeros(3, 4, dtype=torch.float32)
    logits[:, 1] = torch.tensor([9.6, 18.8, 28.0])
    exact = logits.double()
    cross_entropy_in_place(logits, torch.ones(3, dtype=torch.int64), VocabColumns(4, 0, alone), torch.ones(3), form)
    wanted = -3 / (exact[:, 1].exp() + 3)
    # the loss is the difference of two numbers around 20, each rounded to 2e-6
    assert float((logits[:, 1].double() - wanted).abs().max()) < 2e-6


@FORMS
def test_uniform_logits_cost_the_log_of_the_vocabulary(alone, form):
    columns = VocabColumns(100, 0, alone)
    losses = cross_entropy_in_place(torch.zeros(3, 128), torch.tensor([0, 50, 99]), columns, None, form)
    assert losses.tolist() == pytest.approx([math.log(100)] * 3, rel=1e-6)


def split_case(seed, num_tokens, vocab, padded):
    """Losses and this rank's gradient of a vocabulary cut over all ranks."""
    logits, labels, weights = random_case(seed, num_tokens, vocab, padded)
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = logits.chunk(size, dim=-1)[rank].clone()
    losses = cross_entropy_in_place(mine, labels, VocabColumns(vocab, rank, dist.group.WORLD), weights)
    wanted, wanted_gradient = torch_loss_and_gradient(logits, labels, weights, vocab)
    wanted_gradient = wanted_gradient.chunk(size, dim=-1)[rank]
    return (
        float((losses - wanted).abs().max()),
        float((mine - wanted_gradient).abs().max()),
        bool(losses.isfinite().all() and mine.isfinite().all()),
        losses.tolist(),
    )


def split_cases():
    """(vocab, padded) where padding begins inside the last slice, at its border, and covers slices whole."""
    return {
        (vocab, padded): split_case(vocab, 15, vocab, padded)
        for vocab, padded in [(128, 128), (100, 128), (64, 128), (40, 128), (1, 4), (2, 4), (33, 128)]
    }


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_split_vocabulary_equals_torch(num_ranks):
    ranks = run_ranks(num_ranks, split_cases)
    for cases in ranks:
        for key, (loss_error, gradient_error, finite, losses) in cases.items():
            assert loss_error < TOLERANCE, key
            assert gradient_error < TOLERANCE, key
            assert finite, key
            assert losses == ranks[0][key][3], f"ranks differ by rounding: {key}"


@pytest.mark.parametrize(
    "form",
    [
        "in one block",
        "in several blocks",
        pytest.param("native", marks=pytest.mark.skipif(not native_rows_fit(torch.zeros(1, 1)), reason="no AVX-512")),
    ],
)
@pytest.mark.parametrize(("vocab", "padded", "num_ranks"), [(300, 384, 1), (300, 384, 3), (100, 384, 3), (257, 257, 1)])
def test_the_kernels_equal_the_reference(monkeypatch, form, vocab, padded, num_ranks):
    """Of a whole vocabulary and of slices, one of which may be padding alone."""
    from megagpt.kernels import cross_entropy_triton

    softmax_rows = native_rows if form == "native" else cross_entropy_triton.softmax_rows
    if form == "in several blocks":
        monkeypatch.setattr(cross_entropy_triton, "row_block", lambda width: (64, 4))
    logits, labels, weights = random_case(fresh_seed(), 11, vocab, padded)
    logits, weights = logits.float(), weights.float()
    wanted, wanted_gradient = torch_loss_and_gradient(logits, labels, weights.double(), vocab)
    width = padded // num_ranks
    slices = [part.clone() for part in logits.split(width, dim=1)]
    places = [(rank * width, min(max(vocab - rank * width, 0), width)) for rank in range(num_ranks)]
    if num_ranks == 1:
        sums, scores = softmax_rows(slices[0], labels, *places[0], weights, None)
    else:
        found = [softmax_rows(part, labels, *place, None, None) for part, place in zip(slices, places, strict=True)]
        assert all(torch.equal(part, before) for part, before in zip(slices, logits.split(width, dim=1), strict=True))
        sums = torch.logsumexp(torch.stack([one for one, _ in found]), 0)
        scores = torch.stack([score for _, score in found]).sum(0)
        for part, place in zip(slices, places, strict=True):
            softmax_rows(part, labels, *place, weights, (sums, scores))
    torch.testing.assert_close((sums - scores).double(), wanted, rtol=1e-6, atol=2e-6)
    assert float((torch.cat(slices, dim=1).double() - wanted_gradient).abs().max()) < 1e-6


def test_the_triton_kernel_compiles_for_gpus_that_are_not_here():
    from megagpt.kernels.cross_entropy_triton import row_block

    cases = []
    for dtype in ("bf16", "fp16", "fp32"):
        for width in (6400, 12800, 50304):  # of 8, 4 and 1 tensor ranks
            block, num_warps = row_block(width)
            for is_known, writes in ((False, False), (False, True), (True, True)):
                pointers = dict.fromkeys(("sums_pointer", "weights_pointer", "scores_pointer"), "*fp32")
                signature = {"logits_pointer": f"*{dtype}", "labels_pointer": "*i64", **pointers}
                signature |= dict.fromkeys(("row_stride", "width", "num_valid", "first"), "i32")
                constants = {"BLOCK": block, "NUM_BLOCKS": -(-width // block), "IS_KNOWN": is_known, "WRITES": writes}
                signature |= dict.fromkeys(constants, "constexpr")
                module = "megagpt.kernels.cross_entropy_triton"
                cases += [
                    case(module, "_softmax_rows", signature, constants, capability, num_warps)
                    for capability in (80, 90)
                ]
    for size in compile_all(cases):
        assert size["cubin_bytes"] > 0
        assert size["shared_bytes"] <= 99 * 1024  # reductions alone need any: measured at most 64 bytes
