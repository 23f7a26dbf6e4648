"""What computes attention by name: those that run here against float64, the libraries' calls against stand-ins."""

import sys
from types import ModuleType

import pytest
import torch

from megagpt.config import TrainSection
from megagpt.errors import ConfigError
from megagpt.kernels import attention_backends
from megagpt.kernels.attention import attention, choose, reference_attention
from megagpt.kernels.attention_backends import BACKENDS, check_backend, missing
from megagpt.kernels.attention_documents import PackedDocuments
from megagpt.kernels.attention_names import ABILITIES, abilities
from tests.unit.kernels.attention_inputs import random_documents, random_heads, random_slopes, truth, worst

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HERE = [name for name in BACKENDS if missing(name, CPU) is None]
# measured worst 2.0e-6
BOUND = 1e-5


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("mean", [None, 1, 7, 60])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 2)])
def test_those_that_run_here_equal_float64(name, mean, heads, key_heads):
    parts = random_heads(1, 2, heads, key_heads, 128, 16, torch.float32)
    documents = None if mean is None else PackedDocuments(random_documents(2, 2, 128, mean))
    slopes = random_slopes(3, parts[0])
    output = attention(*parts, documents, 0.0, None, name)
    found = [output, *torch.autograd.grad(output, parts, slopes)]
    assert max(worst(found, truth(parts, slopes, documents))) < BOUND


@pytest.mark.parametrize("mean", [None, 7])
@pytest.mark.parametrize("key_heads", [2, 4])
def test_flex_equals_float64_forward(mean, key_heads):
    """On a CPU it has no backward pass (torch 2.13)."""
    parts = [part.detach() for part in random_heads(1, 2, 4, key_heads, 140, 16, torch.float32)]
    documents = None if mean is None else PackedDocuments(random_documents(2, 2, 140, mean))
    wanted, *_ = truth(parts, torch.zeros_like(parts[0]), documents)
    assert max(worst([BACKENDS["flex"](*parts, documents, 0.0, None)], [wanted])) < BOUND


@pytest.mark.parametrize("name", [name for name in HERE if ABILITIES[name].dropout])
def test_dropout_by_name_repeats_by_its_seed(name):
    parts = [part.detach() for part in random_heads(1, 1, 2, 2, 32, 16, torch.float32)]
    state = torch.get_rng_state()
    first = attention(*parts, None, 0.3, 11, name)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(attention(*parts, None, 0.3, 11, name), first)
    assert not torch.equal(attention(*parts, None, 0.3, 12, name), first)
    assert torch.equal(attention(*parts, None, 0.3, None, name), attention(*parts, None, 0.0, 11, name))


def test_documents_with_dropout_see_no_other():
    parts = random_heads(1, 1, 1, 1, 32, 32, torch.float32)
    documents = PackedDocuments(random_documents(2, 1, 32, 8))
    one_hot = torch.eye(32)[None, None]
    output = attention(parts[0], parts[1], one_hot, documents, 0.3, 5)
    assert not output[~documents.mask].any()
    assert output[documents.mask].any()


def test_every_name_has_a_place_in_the_configuration():
    annotation = TrainSection.model_fields["attention_backend"].annotation
    assert annotation.__args__ == ("auto", *ABILITIES)
    assert list(BACKENDS) == list(ABILITIES)


def test_abilities():
    assert abilities(False, False, False) == list(ABILITIES)
    assert abilities(True, True, True) == ["sdpa", "sdpa_efficient", "triton"]
    assert "native" in abilities(True, False, True)


def test_what_is_not_here_is_named_with_what_is():
    parts = random_heads(1, 1, 1, 1, 4, 16, torch.float32)
    working = ", ".join(name for name in BACKENDS if name in HERE)
    with pytest.raises(ConfigError) as raised:
        attention(*parts, None, 0.0, None, "sdpa_cudnn")
    assert str(raised.value) == (
        'train.attention_backend = "sdpa_cudnn" does not work here: it needs a GPU, and this is cpu; use auto, or one '
        f"of these: {working}"
    )
    if missing("flash_attn", CUDA) is not None:
        with pytest.raises(ConfigError, match="flash_attn is not installed; use auto, or one of these"):
            check_backend("flash_attn", CUDA)
    check_backend("auto", CPU)
    check_backend("sdpa", CPU)


def choice(documents=None, dropped=False, width=64, length=64, dtype=torch.bfloat16):
    heads = torch.zeros(3, 1, 1, length, width, dtype=dtype).unbind()
    return choose(*heads, documents, dropped)


def test_auto(monkeypatch):
    """On a CPU our kernel for it where that fits, on a GPU ours for documents in half precision; else torch's own."""
    documents = PackedDocuments(torch.zeros(1, 64, dtype=torch.int32))
    best = "native" if "native" in HERE else "sdpa"
    assert choice() == choice(documents) == choice(dtype=torch.float32) == best
    assert choice(dropped=True) == choice(length=60) == choice(width=20) == choice(dtype=torch.float16) == "sdpa"
    monkeypatch.setattr("megagpt.kernels.attention.native_attention_fits", lambda *heads: False)
    assert choice(documents) == "sdpa"
    monkeypatch.setattr("megagpt.kernels.attention.runs_triton", lambda tensor: True)
    assert choice() == choice(dropped=True) == "sdpa"
    assert choice(documents) == choice(documents, dropped=True) == "triton"
    assert choice(documents, dtype=torch.float32) == choice(documents, width=256) == "sdpa"


@pytest.mark.parametrize(
    ("name", "width", "length", "words"),
    [
        ("native", 64, 60, "60 tokens and heads of 64: it takes fp32 and bf16 on a CPU, multiples of 64 tokens"),
        ("triton", 256, 64, "heads are 256 wide, and the kernels hold at most 128; use auto or sdpa"),
    ],
)
def test_a_shape_that_a_name_cannot_take_is_said(name, width, length, words):
    if name not in HERE:
        pytest.skip(f"{name} does not run here")
    heads = random_heads(1, 1, 1, 1, length, width, torch.float32)
    with pytest.raises(ConfigError, match=words):
        attention(*heads, None, 0.0, None, name)


def plain_over_bounds(query, key, value, bounds):
    """[T, N, D] within documents, with fewer key heads."""
    group = query.shape[1] // key.shape[1]
    rows = []
    for begin, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        heads = [part[begin:end].transpose(0, 1)[None] for part in (query, key, value)]
        keys, values = (part.repeat_interleave(group, 1) for part in heads[1:])
        rows.append(reference_attention(heads[0], keys, values)[0].transpose(0, 1))
    return torch.cat(rows)


def whole_bounds(batch: int, length: int) -> torch.Tensor:
    return torch.arange(0, batch * length + 1, length)


def fake_flash_attn() -> ModuleType:
    """The two functions of flash-attn 2 that we call, by its signatures (flash_attn/flash_attn_interface.py)."""
    module = ModuleType("flash_attn")

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        assert causal
        flat = plain_over_bounds(*(part.flatten(0, 1) for part in (q, k, v)), whole_bounds(*q.shape[:2]))
        if dropout_p > 0:
            flat = torch.nn.functional.dropout(flat, dropout_p)
        return flat.unflatten(0, q.shape[:2])

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
    ):
        assert causal
        assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        return plain_over_bounds(q, k, v, cu_seqlens_q)

    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    return module


def fake_transformer_engine() -> dict[str, ModuleType]:
    """DotProductAttention with the arguments that we give (transformer_engine/pytorch/attention)."""

    class DotProductAttention:
        def __init__(self, num_attention_heads, kv_channels, num_gqa_groups=None, attention_dropout=0.1):
            assert attention_dropout == 0.0
            self.shape = (num_attention_heads, num_gqa_groups, kv_channels)

        def __call__(self, query, key, value, qkv_format, attn_mask_type, **lengths):
            assert (query.shape[-2], key.shape[-2], query.shape[-1]) == self.shape
            if qkv_format == "sbhd":
                assert attn_mask_type == "causal"
                heads = [part.transpose(0, 1) for part in (query, key, value)]
                bounds = whole_bounds(*heads[0].shape[:2])
                mixed = plain_over_bounds(*(part.flatten(0, 1) for part in heads), bounds)
                return mixed.unflatten(0, heads[0].shape[:2]).transpose(0, 1).flatten(-2)
            assert (qkv_format, attn_mask_type) == ("thd", "padding_causal")
            assert lengths["max_seqlen_q"] == int(lengths["cu_seqlens_kv"].diff().max())
            return plain_over_bounds(query, key, value, lengths["cu_seqlens_q"]).flatten(-2)

    package, module = ModuleType("transformer_engine"), ModuleType("transformer_engine.pytorch")
    module.DotProductAttention = DotProductAttention
    return {"transformer_engine": package, "transformer_engine.pytorch": module}


def fake_varlen() -> ModuleType:
    """torch.nn.attention.varlen of torch 2.13, whose kernel needs a GPU."""
    module = ModuleType("torch.nn.attention.varlen")

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
        assert window_size == (-1, 0), "causal"
        assert enable_gqa == (query.shape[1] != key.shape[1])
        assert max_q == max_k == int(cu_seq_q.diff().max())
        return plain_over_bounds(query, key, value, cu_seq_k)

    module.varlen_attn = varlen_attn
    return module


@pytest.mark.parametrize("name", ["flash_attn", "transformer_engine", "varlen"])
@pytest.mark.parametrize("mean", [None, 3])
@pytest.mark.parametrize("key_heads", [2, 4])
def test_libraries_are_called_by_their_signatures(name, mean, key_heads, monkeypatch):
    """Layouts, lengths and masks there and back; the libraries' own kernels need a GPU."""
    modules = {"flash_attn": fake_flash_attn(), "torch.nn.attention.varlen": fake_varlen(), **fake_transformer_engine()}
    for module, stand_in in modules.items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    attention_backends._transformer_engine_core.cache_clear()
    parts = random_heads(4, 2, 4, key_heads, 20, 8, torch.float64)
    documents = None if mean is None else PackedDocuments(random_documents(5, 2, 20, mean))
    slopes = random_slopes(6, parts[0])
    output = BACKENDS[name](*parts, documents, 0.0, None)
    found = [output, *torch.autograd.grad(output, parts, slopes)]
    attention_backends._transformer_engine_core.cache_clear()
    assert max(worst(found, truth(parts, slopes, documents))) < 1e-12


def test_flash_attn_takes_dropout_by_its_seed(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn())
    parts = [part.detach() for part in random_heads(4, 1, 2, 2, 20, 8, torch.float64)]
    first = BACKENDS["flash_attn"](*parts, None, 0.5, 3)
    assert torch.equal(first, BACKENDS["flash_attn"](*parts, None, 0.5, 3))
    assert not torch.equal(first, BACKENDS["flash_attn"](*parts, None, 0.5, 4))


def test_lengths_and_bounds_of_documents():
    documents = PackedDocuments(torch.tensor([[0, 0, 1, 1, 1], [0, 1, 2, 2, 2]], dtype=torch.int32))
    assert documents.bounds.starts.tolist() == [[0, 0, 2, 2, 2], [0, 1, 2, 2, 2]]
    assert documents.bounds.ends.tolist() == [[2, 2, 5, 5, 5], [1, 2, 5, 5, 5]]
    assert documents.lengths.bounds.tolist() == [0, 2, 5, 6, 7, 10]
    assert documents.lengths.longest == 3
    assert {part.dtype for part in (*documents.bounds, documents.lengths.bounds)} == {torch.int32}


def test_pieces_are_cut_between_documents():
    lengths = torch.tensor([3, 70, 1, 1, 61, 2, 100, 5])
    documents = PackedDocuments(torch.repeat_interleave(torch.arange(8), lengths)[None].int())
    (pieces,) = documents.pieces
    assert [tuple(piece) for piece in pieces] == [(0, 73, 2), (73, 138, 4), (138, 238, 1), (238, 243, 1)]
