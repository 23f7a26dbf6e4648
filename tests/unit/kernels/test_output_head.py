"""The head in chunks against whole logits in float64: losses and gradients, on one rank and on several; its memory."""

import time
from functools import partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from megagpt.kernels import cross_entropy, output_head
from megagpt.kernels.cross_entropy import VocabColumns
from megagpt.kernels.head_chunks import HeadChunks, head_chunks
from megagpt.kernels.output_head import head_loss, reference_head_loss, token_losses
from tests.parallel.harness import run_ranks
from tests.unit.kernels.peak_bytes import PeakBytes

LENGTH, BATCH, HIDDEN, VOCAB, PADDED = 12, 3, 16, 33, 40
# float64: measured worst 1e-15 of gradients up to 1
TOLERANCE = 1e-13
CHUNKS = [HeadChunks(1, 36, False), HeadChunks(7, 6, False), HeadChunks(36, 1, False), None]


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


def random_case(seed, dtype=torch.float64, vocab=VOCAB, padded=PADDED, hidden_size=HIDDEN):
    """Hidden states, table, labels, weights: a fifth of the tokens does not count."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(LENGTH, BATCH, hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    table = (torch.randn(padded, hidden_size, generator=generator, dtype=torch.float64) * 0.5).to(dtype)
    labels = torch.randint(0, vocab, (LENGTH, BATCH), generator=generator)
    weights = (torch.rand(LENGTH, BATCH, generator=generator) > 0.2).float()
    return hidden, table, labels, weights


def gradients(loss, hidden, table, factor=0.3):
    """Loss and both gradients of factor x loss."""
    hidden, table = hidden.detach().requires_grad_(), table.detach().requires_grad_()
    total = loss(hidden, table)
    return total.detach(), *torch.autograd.grad(total * factor, (hidden, table))


def relative(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("chunks", CHUNKS)
def test_losses_and_gradients_are_the_references(alone, chunks):
    hidden, table, labels, weights = random_case(fresh_seed())
    columns = VocabColumns(VOCAB, 0, alone)
    found = gradients(lambda h, w: head_loss(h, w, labels, weights, columns, chunks=chunks), hidden, table)
    wanted = gradients(lambda h, w: reference_head_loss(h, w, labels, weights, VOCAB), hidden, table)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=TOLERANCE)
    assert torch.equal(found[2][VOCAB:], torch.zeros(PADDED - VOCAB, HIDDEN, dtype=torch.float64))
    losses = token_losses(hidden, table, labels, columns, chunks=chunks)
    assert losses.shape == labels.shape
    wanted_losses = F.cross_entropy((hidden @ table.t())[..., :VOCAB].flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(losses.flatten(), wanted_losses, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3), (torch.float16, 8e-4)])
@pytest.mark.parametrize("tokens", [5, 12, 36])
def test_half_precision_is_near_the_reference(alone, dtype, bound, tokens):
    """As near as rounding allows; measured worst 2.5e-7, 4.2e-3 and 5.4e-4 of a gradient's norm."""
    hidden, table, labels, weights = random_case(fresh_seed(), dtype)
    chunks = HeadChunks(tokens, -(-36 // tokens), dtype == torch.float16 or tokens == 5)
    columns = VocabColumns(VOCAB, 0, alone)
    found = gradients(lambda h, w: head_loss(h, w, labels, weights, columns, chunks=chunks), hidden, table)
    wanted = gradients(lambda h, w: reference_head_loss(h, w, labels, weights, VOCAB), hidden.double(), table.double())
    assert found[0].dtype == torch.float32
    assert [one.dtype for one in found[1:]] == [dtype, dtype]
    for one, other in zip(found[1:], wanted[1:], strict=True):
        assert relative(one, other) < bound


def test_summing_the_tables_gradient_in_its_own_format_costs_little_precision_in_few_chunks(alone):
    """bf16, many tokens of few kinds: what more roundings add. The reason for float32 from a number of chunks on."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(512, 1, 32, generator=generator).bfloat16() + 1
    table = (torch.randn(48, 32, generator=generator) * 0.1).bfloat16()
    labels = torch.randint(0, 4, (512, 1), generator=generator)
    weights = torch.ones(512, 1)
    columns = VocabColumns(48, 0, alone)
    wanted = gradients(lambda h, w: reference_head_loss(h, w, labels, weights, 48), hidden.double(), table.double())[2]

    def error(num_chunks, wide):
        chunks = HeadChunks(512 // num_chunks, num_chunks, wide)
        return relative(
            gradients(lambda h, w: head_loss(h, w, labels, weights, columns, chunks=chunks), hidden, table)[2], wanted
        )

    one = error(1, False)
    assert error(4, False) < 1.5 * one  # measured 1.2
    assert error(64, False) > 2 * one  # measured 3.5
    assert error(64, True) < 1.2 * one


def test_fp16_keeps_probabilities_that_are_zero_in_its_format(alone):
    """A vocabulary of 20,000 kinds, most of which have probabilities around 1e-9: their gradients sum up."""
    generator = torch.Generator().manual_seed(6)
    hidden = torch.ones(LENGTH, BATCH, 4, dtype=torch.float16)
    table = (torch.randn(20_000, 4, generator=generator) * 0.1 - 2.5).half()
    table[:2] = 2.5
    labels, weights = torch.zeros(LENGTH, BATCH, dtype=torch.int64), torch.ones(LENGTH, BATCH)
    columns = VocabColumns(20_000, 0, alone)
    found = gradients(lambda h, w: head_loss(h, w, labels, weights, columns), hidden, table, 1024.0)[2][2:]
    wanted = gradients(
        lambda h, w: reference_head_loss(h, w, labels, weights, 20_000), hidden.double(), table.double(), 1024.0
    )[2][2:]
    assert float(wanted.max()) < 1e-3
    assert relative(found, wanted) < 0.02


@pytest.mark.parametrize("which", ["hidden", "table"])
def test_only_the_gradient_that_is_wanted_is_made(alone, which):
    hidden, table, labels, weights = random_case(fresh_seed())
    wanted = dict(
        zip(
            ("hidden", "table"),
            gradients(lambda h, w: reference_head_loss(h, w, labels, weights, VOCAB), hidden, table, 1.0)[1:],
            strict=True,
        )
    )
    given = {"hidden": hidden, "table": table}
    given[which] = given[which].requires_grad_()
    head_loss(given["hidden"], given["table"], labels, weights, VocabColumns(VOCAB, 0, alone)).backward()
    torch.testing.assert_close(given[which].grad, wanted[which], rtol=0, atol=TOLERANCE)


def test_a_second_backward_pass_is_an_error(alone):
    hidden, table, labels, weights = random_case(fresh_seed())
    total = head_loss(hidden.requires_grad_(), table, labels, weights, VocabColumns(VOCAB, 0, alone))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="runs backward once"):
        total.backward()


def test_without_gradients_none_are_made(alone):
    hidden, table, labels, weights = random_case(fresh_seed())
    columns = VocabColumns(VOCAB, 0, alone)
    with_gradients = head_loss(hidden.requires_grad_(), table.requires_grad_(), labels, weights, columns)
    with torch.no_grad(), mock.patch.object(output_head, "_Gradients", side_effect=AssertionError):
        total = head_loss(hidden, table, labels, weights, columns)
    assert not total.requires_grad
    assert torch.equal(total, with_gradients.detach())


def split_case(sequence_parallel, tokens):
    """This rank's total and gradients of a vocabulary cut over all ranks, and those of the whole."""
    hidden, table, labels, weights = random_case(9, vocab=29, padded=40)
    rank, size = dist.get_rank(), dist.get_world_size()
    wanted = gradients(lambda h, w: reference_head_loss(h, w, labels, weights, 29), hidden, table)
    mine = table.chunk(size)[rank].clone()
    part = hidden.chunk(size)[rank].clone() if sequence_parallel else hidden
    columns = VocabColumns(29, rank, dist.group.WORLD)
    chunks = HeadChunks(tokens, -(-LENGTH * BATCH // tokens), False)
    found = gradients(lambda h, w: head_loss(h, w, labels, weights, columns, sequence_parallel, chunks), part, mine)
    losses = token_losses(part, mine, labels, columns, sequence_parallel, chunks)
    wanted_hidden = wanted[1].chunk(size)[rank] if sequence_parallel else wanted[1]
    return (
        float((found[0] - wanted[0]).abs()),
        float((found[1] - wanted_hidden).abs().max()),
        float((found[2] - wanted[2].chunk(size)[rank]).abs().max()),
        float(((losses * weights).sum() - wanted[0]).abs()),
    )


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("tokens", [5, 36])
def test_tensor_ranks_equal_the_reference(num_ranks, sequence_parallel, tokens):
    for differences in run_ranks(num_ranks, split_case, sequence_parallel, tokens):
        assert max(differences) < 1e-12  # of a total around 200


@pytest.mark.parametrize(
    ("num_tokens", "width", "dtype", "device", "expected"),
    [
        (2048, 50304, "bfloat16", "cuda", HeadChunks(1024, 2, False)),
        (16384, 50304, "bfloat16", "cuda", HeadChunks(4096, 4, False)),
        (65536, 50304, "bfloat16", "cuda", HeadChunks(5120, 13, True)),
        (2048, 6288, "float16", "cuda", HeadChunks(1024, 2, True)),
        (65536, 50304, "float32", "cuda", HeadChunks(2688, 25, False)),
        (1024, 32000, "bfloat16", "cpu", HeadChunks(512, 2, False)),
        (24, 128, "float32", "cpu", HeadChunks(24, 1, False)),
    ],
)
def test_chunks(num_tokens, width, dtype, device, expected):
    assert head_chunks(num_tokens, width, dtype, device) == expected


def whole_logits(hidden, table, labels, weights):
    """The head as torch alone has it: all logits, and their softmax kept for the backward pass."""
    logits = F.linear(hidden, table)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return (losses.float() * weights).sum()


HEADS = {
    "gpt3-2.7b, one GPU, micro-batch 8": (2560, 50304, 8),
    "gpt3-2.7b, one GPU, micro-batch 1": (2560, 50304, 1),
    "gpt3-175b, one GPU, micro-batch 1": (12288, 50304, 1),
    "gpt3-175b, 8 tensor ranks, micro-batch 1": (12288, 6288, 1),
    "gpt3-175b, 8 tensor ranks, micro-batch 8": (12288, 6288, 8),
}


def softmax_of_a_kernel(logits, labels, columns, weights, known=None):
    """What the Triton kernel leaves in memory: it works in registers."""
    return torch.empty(len(labels)), torch.empty(len(labels))


@pytest.mark.parametrize("name", HEADS)
def test_memory_of_logits_falls_to_a_quarter(alone, name):
    """Bytes at the peak of a forward and backward pass, but for the two gradients, which any form makes."""
    hidden_size, width, batch = HEADS[name]
    columns = VocabColumns(width, 0, alone)
    chunks = head_chunks(2048 * batch, width, "bfloat16", "cuda")
    forms = {"whole": whole_logits, "chunks": partial(head_loss, columns=columns, chunks=chunks)}
    found = {}
    for form, loss in forms.items():
        with (
            FakeTensorMode(),
            mock.patch.multiple(cross_entropy, _torch_rows=softmax_of_a_kernel, _choose_form=lambda logits: "torch"),
        ):
            hidden = torch.empty(2048, batch, hidden_size, dtype=torch.bfloat16, requires_grad=True)
            table = torch.empty(width, hidden_size, dtype=torch.bfloat16, requires_grad=True)
            labels, weights = torch.empty(2048, batch, dtype=torch.int64), torch.empty(2048, batch)
            with PeakBytes(apart={2 * hidden.numel(), 2 * table.numel()}) as peak:
                loss(hidden, table, labels, weights).backward()
        found[form] = peak
    print(name, {form: (peak.most >> 20, peak.most_with_apart >> 20) for form, peak in found.items()}, "MiB")
    assert found["whole"].most > 5.9 * found["chunks"].most
    logits_and_softmax = 2 * 2 * width * 2048 * batch  # what the head kept before it worked in chunks
    assert logits_and_softmax > 3.95 * found["chunks"].most
    assert found["whole"].most_with_apart > found["chunks"].most_with_apart
