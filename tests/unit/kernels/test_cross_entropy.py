"""Cross-entropy over a split vocabulary against torch's own in float64: losses, gradients, padding columns."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megagpt.kernels.cross_entropy import reference_cross_entropy, vocab_parallel_cross_entropy
from tests.parallel.harness import run_ranks

# float64, measured worst 1.8e-15
TOLERANCE = 1e-13
SHAPES = [((7,), 5, 8), ((3, 4), 11, 16), ((2, 3, 5), 128, 128), ((1, 1), 2, 64)]


@pytest.fixture(scope="module")
def alone():
    """A group of this one process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def random_case(seed, shape, vocab, padded, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, padded, generator=generator, dtype=torch.float64) * scale
    logits[..., vocab:] += 1e4  # what stands in padding columns must not matter
    labels = torch.randint(0, vocab, shape, generator=generator)
    upstream = torch.rand(shape, generator=generator, dtype=torch.float64)
    return logits, labels, upstream


def torch_loss_and_gradient(logits, labels, upstream, vocab):
    whole = logits[..., :vocab].detach().double().requires_grad_()
    losses = F.cross_entropy(whole.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    (gradient,) = torch.autograd.grad((losses * upstream).sum(), whole)
    return losses.detach(), F.pad(gradient, (0, logits.shape[-1] - vocab))


@pytest.mark.parametrize(("shape", "vocab", "padded"), SHAPES)
def test_one_rank_equals_torch(alone, shape, vocab, padded):
    logits, labels, upstream = random_case(1, shape, vocab, padded)
    logits.requires_grad_()
    losses = vocab_parallel_cross_entropy(logits, labels, vocab, 0, alone)
    (gradient,) = torch.autograd.grad((losses * upstream).sum(), logits)
    wanted, wanted_gradient = torch_loss_and_gradient(logits, labels, upstream, vocab)
    torch.testing.assert_close(losses, wanted, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=0, atol=TOLERANCE)
    assert torch.equal(gradient[..., vocab:], torch.zeros_like(gradient[..., vocab:]))
    torch.testing.assert_close(reference_cross_entropy(logits, labels, vocab), wanted, rtol=0, atol=TOLERANCE)


def test_gradients_are_those_of_finite_differences(alone):
    logits, labels, upstream = random_case(2, (2, 2), 5, 8, scale=1.0)
    logits[..., 5:] -= 1e4
    logits.requires_grad_()

    def total(values):
        return (vocab_parallel_cross_entropy(values, labels, 5, 0, alone) * upstream).sum()

    (gradient,) = torch.autograd.grad(total(logits), logits)
    for place in range(logits.numel()):
        step = torch.zeros_like(logits).view(-1)
        step[place] = 1e-5
        slope = (total(logits.detach() + step.view_as(logits)) - total(logits.detach() - step.view_as(logits))) / 2e-5
        assert float(slope) == pytest.approx(float(gradient.view(-1)[place]), abs=1e-9)


def test_the_logits_are_not_changed(alone):
    logits, labels, _ = random_case(3, (4, 4), 7, 8)
    before = logits.clone()
    logits.requires_grad_()
    vocab_parallel_cross_entropy(logits, labels, 7, 0, alone).sum().backward()
    assert torch.equal(logits.detach(), before)


def test_a_second_backward_pass_gives_the_same_gradient(alone):
    logits, labels, _ = random_case(4, (3,), 7, 8)
    losses = vocab_parallel_cross_entropy(logits.requires_grad_(), labels, 7, 0, alone).sum()
    (first,) = torch.autograd.grad(losses, logits, retain_graph=True)
    (second,) = torch.autograd.grad(losses, logits)
    assert torch.equal(first, second)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_stay_finite(alone, size):
    """One score far from the others: the loss is that distance or zero, never inf or nan."""
    logits = torch.zeros(2, 8, dtype=torch.float32)
    logits[:, 2] = size
    logits.requires_grad_()
    labels = torch.tensor([2, 3])
    losses = vocab_parallel_cross_entropy(logits, labels, 6, 0, alone)
    losses.sum().backward()
    if size > 0:
        assert losses.tolist() == [0.0, size]
    else:
        assert losses.tolist() == pytest.approx([-size + math.log(5), math.log(5)])
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11), (torch.float32, 2e-7)])
def test_half_precision_logits_give_float32_losses(alone, dtype, bound):
    logits, labels, upstream = random_case(5, (6, 5), 100, 128)
    logits = logits.to(dtype).requires_grad_()
    losses = vocab_parallel_cross_entropy(logits, labels, 100, 0, alone)
    (gradient,) = torch.autograd.grad((losses * upstream).sum(), logits)
    wanted, wanted_gradient = torch_loss_and_gradient(logits, labels, upstream, 100)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-6, atol=1e-6)
    assert float((gradient.double() - wanted_gradient).abs().max()) < bound  # rounding of values up to 1


def test_uniform_logits_cost_the_log_of_the_vocabulary(alone):
    losses = vocab_parallel_cross_entropy(torch.zeros(3, 128), torch.tensor([0, 50, 99]), 100, 0, alone)
    assert losses.tolist() == pytest.approx([math.log(100)] * 3, rel=1e-6)


def split_case(seed, shape, vocab, padded):
    """Losses and this rank's gradient of a vocabulary cut over all ranks."""
    logits, labels, upstream = random_case(seed, shape, vocab, padded)
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = logits.chunk(size, dim=-1)[rank].clone().requires_grad_()
    losses = vocab_parallel_cross_entropy(mine, labels, vocab, rank, dist.group.WORLD)
    (gradient,) = torch.autograd.grad((losses * upstream).sum(), mine)
    wanted, wanted_gradient = torch_loss_and_gradient(logits, labels, upstream, vocab)
    wanted_gradient = wanted_gradient.chunk(size, dim=-1)[rank]
    return (
        float((losses.detach() - wanted).abs().max()),
        float((gradient - wanted_gradient).abs().max()),
        bool(losses.isfinite().all() and gradient.isfinite().all()),
        gradient.shape == mine.shape,
    )


def split_cases():
    """(vocab, padded) where padding begins inside the last slice, at its border, and covers slices whole."""
    return {
        (vocab, padded): split_case(vocab, (3, 5), vocab, padded)
        for vocab, padded in [(128, 128), (100, 128), (64, 128), (40, 128), (1, 4), (2, 4), (33, 128)]
    }


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_split_vocabulary_equals_torch(num_ranks):
    for cases in run_ranks(num_ranks, split_cases):
        for case, (loss_error, gradient_error, finite, same_shape) in cases.items():
            assert loss_error < TOLERANCE, case
            assert gradient_error < TOLERANCE, case
            assert finite, case
            assert same_shape, case
