"""The decoder in one process against the plain reference: logits, losses, gradients, cache, documents, dropout."""

import pytest
import torch

from megagpt.data.batch import Batch
from megagpt.data.stream import make_batch
from megagpt.model.context import LayerCache
from megagpt.model.reference import reference_logits, reference_loss
from tests.unit.model.small import random_batch, random_parameters, small_spec, whole_chunk

SPEC = small_spec()
PARAMETERS = random_parameters(SPEC)
# fp32; weights N(0, 0.2) give logits of up to 4.5. Measured worst over 15 models: logits 2.9e-6, with a cache 3.0e-6,
# a document's losses 1.5e-6, mean loss 1.9e-7 relative, gradients 1.7e-6 of the largest value of their tensor
LOGITS, LOSS, GRADIENT = 1.5e-5, 1e-5, 1e-5


@pytest.fixture(scope="module")
def chunk(mesh):
    return whole_chunk(SPEC, mesh, PARAMETERS)


def make_caches(spec, batch):
    shape = (batch, spec.num_heads, spec.sequence_length, spec.head_dim)
    return {
        str(number): LayerCache(torch.full(shape, torch.nan), torch.full(shape, torch.nan))
        for number in range(spec.num_layers)
    }


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf"])
def test_logits_equal_the_reference(mesh, activation):
    spec = small_spec(activation=activation, layer_norm_epsilon=1e-3)
    batch = random_batch(spec, 1)
    found = whole_chunk(spec, mesh, PARAMETERS).logits(batch.tokens, batch.positions)
    wanted = reference_logits(PARAMETERS, spec, batch)
    assert found.shape == (3, 24, 100)
    assert wanted.abs().max() > 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=LOGITS)


def test_losses_equal_the_reference(chunk):
    batch = random_batch(SPEC, 2)
    losses = chunk.token_losses(batch)
    assert losses.shape == (3, 24)
    assert losses.dtype == torch.float32
    found = (losses * batch.loss_mask).sum() / batch.loss_mask.sum()
    wanted = reference_loss(PARAMETERS, SPEC, [batch])
    assert found.item() == pytest.approx(wanted.item(), rel=LOSS)
    total = chunk(batch, None, None)
    assert total.shape == ()
    assert (total / batch.loss_mask.sum()).item() == pytest.approx(wanted.item(), rel=LOSS)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_every_gradient_equals_the_reference(mesh, recompute):
    chunk = whole_chunk(SPEC, mesh, PARAMETERS, recompute)
    batch = random_batch(SPEC, 3)
    (chunk(batch, None, None) / batch.loss_mask.sum()).backward()
    wanted = torch.autograd.grad(reference_loss(PARAMETERS, SPEC, [batch]), list(PARAMETERS.values()))
    found = dict(chunk.named_parameters())
    assert found.keys() == PARAMETERS.keys()
    for name, gradient in zip(PARAMETERS, wanted, strict=True):
        difference = (found[name].grad - gradient).abs().max() / gradient.abs().max().clamp(min=1e-3)
        assert difference < GRADIENT, name


@pytest.mark.parametrize("cuts", [[1] * 24, [24], [10, 1, 1, 12], [3, 5, 7, 9]])
def test_cached_logits_equal_whole_logits(chunk, cuts):
    batch = random_batch(SPEC, 4)
    chunk.eval()
    whole = chunk.logits(batch.tokens, batch.positions)
    caches, parts, start = make_caches(SPEC, 3), [], 0
    for length in cuts:
        place = slice(start, start + length)
        parts.append(chunk.logits(batch.tokens[:, place], batch.positions[:, place], caches))
        start += length
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=LOGITS)
    assert all(cache.length == 24 for cache in caches.values())


def test_a_full_cache_is_our_mistake(chunk):
    batch, caches = random_batch(SPEC, 5), make_caches(SPEC, 3)
    chunk.logits(batch.tokens, batch.positions, caches)
    with pytest.raises(AssertionError, match="cache of 24 positions cannot hold 25"):
        chunk.logits(batch.tokens[:, :1], batch.positions[:, -1:], caches)


def packed(lengths: list[int], seed: int) -> tuple[Batch, list[torch.Tensor]]:
    """One sequence of documents, each ended by id 0, as the data stream packs them; and the documents alone."""
    generator = torch.Generator().manual_seed(seed)
    documents = [
        torch.cat([torch.randint(1, SPEC.vocab_size, (length - 1,), generator=generator), torch.tensor([0])])
        for length in lengths
    ]
    row = torch.cat(documents)
    return make_batch(row[None].numpy(), 0), documents


@pytest.mark.parametrize("lengths", [[25], [10, 15], [2, 3, 9, 7, 4], [24, 1], [1, 1, 23]])
def test_packed_documents_kept_apart_equal_each_document_alone(chunk, lengths):
    """Each token's loss in the packed sequence is its loss in a sequence that holds its document and nothing else."""
    batch, documents = packed(lengths, 6)
    assert batch.documents is not None
    found = chunk.token_losses(batch)[0]
    start = 0
    for document in documents:
        inputs = document[:-1]  # the end of a document predicts nothing
        if len(inputs):
            alone = Batch(
                tokens=inputs[None],
                labels=document[None, 1:],
                loss_mask=torch.ones(1, len(inputs)),
                positions=torch.arange(len(inputs))[None],
                documents=None,
            )
            place = slice(start, start + len(inputs))
            torch.testing.assert_close(found[place], chunk.token_losses(alone)[0], rtol=0, atol=LOSS)
            assert bool((batch.loss_mask[0, place] == 1).all())
        start += len(document)
        if start < batch.tokens.shape[1]:
            assert batch.loss_mask[0, start - 1] == 0
    mean = (found * batch.loss_mask[0]).sum() / batch.loss_mask.sum()
    assert mean.item() == pytest.approx(reference_loss(PARAMETERS, SPEC, [batch]).item(), rel=LOSS)


def test_documents_not_kept_apart_do_see_each_other(chunk):
    batch, _ = packed([10, 15], 7)
    plain = batch._replace(documents=None, positions=torch.arange(24)[None])
    apart, together = chunk.token_losses(batch)[0], chunk.token_losses(plain)[0]
    torch.testing.assert_close(apart[:10], together[:10], rtol=0, atol=LOSS)  # the first document is the same
    assert (apart[10:] - together[10:]).abs().min() > 1e-6


def test_no_token_sees_a_later_one(chunk):
    batch = random_batch(SPEC, 8, size=1)
    changed = batch.tokens.clone()
    changed[0, 13] = (changed[0, 13] + 1) % SPEC.vocab_size
    before = chunk.logits(batch.tokens, batch.positions)
    after = chunk.logits(changed, batch.positions)
    assert torch.equal(before[0, :13], after[0, :13])
    assert (before[0, 13:] - after[0, 13:]).abs().amax(-1).min() > 1e-4


def test_ids_of_the_padding_do_not_count(mesh):
    """The rows of the table beyond the vocabulary change neither losses nor logits, and get no gradient."""
    shifted = {name: value.detach().clone() for name, value in PARAMETERS.items()}
    shifted["embedding.tokens.weight"][SPEC.vocab_size :] = 50.0
    batch = random_batch(SPEC, 9)
    one, other = whole_chunk(SPEC, mesh, PARAMETERS), whole_chunk(SPEC, mesh, shifted)
    assert torch.equal(one(batch, None, None), other(batch, None, None))
    other(batch, None, None).backward()
    assert torch.equal(other.embedding.tokens.weight.grad[SPEC.vocab_size :], torch.zeros(28, 32))


def test_dropout_is_a_pure_function_of_its_seed(mesh):
    spec = small_spec(hidden_dropout=0.1, attention_dropout=0.1)
    chunk, batch = whole_chunk(spec, mesh, PARAMETERS), random_batch(spec, 10)
    first = chunk(batch, None, 5)
    torch.manual_seed(99)
    assert torch.equal(chunk(batch, None, 5), first)
    assert not torch.allclose(chunk(batch, None, 6), first)
    assert torch.equal(chunk(batch, None, None), whole_chunk(SPEC, mesh, PARAMETERS)(batch, None, None))


@pytest.mark.parametrize("which", ["hidden_dropout", "attention_dropout"])
def test_each_dropout_acts_and_keeps_the_loss_near(mesh, which):
    chunk, batch = whole_chunk(small_spec(**{which: 0.1}), mesh, PARAMETERS), random_batch(SPEC, 11)
    without = chunk(batch, None, None)
    with_dropout = torch.stack([chunk(batch, None, seed) for seed in range(8)])
    assert (with_dropout - without).abs().min() > 1e-6
    assert len(set(with_dropout.tolist())) == 8
    assert with_dropout.mean().item() == pytest.approx(without.item(), rel=0.05)


def test_marks_by_which_split_parameters_are_known(chunk):
    for name, parameter in chunk.named_parameters():
        split = any(part in name for part in ("qkv", "mlp.up", "output.weight", "down.weight", "tokens"))
        assert parameter.tensor_model_parallel == split, name
        assert parameter.sequence_parallel is False
        assert not hasattr(parameter, "ds_pipe_replicated")
