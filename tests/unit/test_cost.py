"""Parameter counts and FLOPs against formulae written independently of the code, and published sizes."""

from math import prod

import pytest

from megagpt.config_file import load_config
from megagpt.model.cost import (
    count_embedding_parameters,
    count_head_parameters,
    count_layer_parameters,
    count_parameters,
    flops_per_token,
)
from megagpt.model.names import parameter_shapes
from megagpt.model.spec import ModelSpec
from megagpt.plan import make_plan

VOCAB, PADDED = 50257, 50304

# name: layers, hidden, parameters without padding worked out by hand as 12 L H^2 + 13 L H + (V + S + 2) H
FAMILY = {
    "gpt3-base": (12, 768, 125_226_240),
    "gpt3-large": (24, 1024, 355_871_744),
    "gpt3-1.3b": (24, 2048, 1_315_723_264),
    "gpt3-2.7b": (32, 2560, 2_651_553_280),
    "gpt3-13b": (40, 5120, 12_853_386_240),
    "gpt3-30b": (48, 7168, 29_974_418_432),
    "gpt3-175b": (96, 12288, 174_604_259_328),
}


def spec(**values):
    defaults = {
        "name": "t",
        "num_layers": 3,
        "num_heads": 4,
        "hidden_size": 32,
        "ffn_hidden_size": 80,
        "sequence_length": 16,
        "vocab_size": 100,
        "padded_vocab_size": 128,
        "activation": "gelu_tanh",
        "layer_norm_epsilon": 1e-5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_std": 0.02,
    }
    return ModelSpec(**(defaults | values))


def model_gpus(name):
    parallel = load_config(name, []).config.parallel
    return parallel.tensor * parallel.pipeline


@pytest.mark.parametrize("name", FAMILY)
def test_parameters_of_the_family(name):
    num_layers, hidden, worked_out = FAMILY[name]
    plan = make_plan(load_config(name, []), model_gpus(name), None)
    by_hand = 12 * num_layers * hidden**2 + 13 * num_layers * hidden + (VOCAB + 2048 + 2) * hidden
    assert plan.parameters.without_padding == by_hand == worked_out
    assert plan.parameters.total == by_hand + (PADDED - VOCAB) * hidden
    assert plan.parameters.total == sum(prod(info.shape) for info in parameter_shapes(plan.spec).values())


@pytest.mark.parametrize(
    ("name", "billions"), [("gpt3-base", 0.125), ("gpt3-2.7b", 2.7), ("gpt3-13b", 13), ("gpt3-175b", 175)]
)
def test_parameters_are_those_of_the_paper(name, billions):
    """Brown et al. 2020, table 2.1, which rounds."""
    assert FAMILY[name][2] / 1e9 == pytest.approx(billions, rel=0.02)


def test_gpt2_small_has_its_well_known_size():
    """124,439,808 parameters: huggingface.co/openai-community/gpt2, with its 1024 positions."""
    gpt2 = spec(
        num_layers=12,
        num_heads=12,
        hidden_size=768,
        ffn_hidden_size=3072,
        sequence_length=1024,
        vocab_size=VOCAB,
        padded_vocab_size=VOCAB,
    )
    assert count_parameters(gpt2) == 124_439_808


def test_counts_of_the_parts_make_the_whole():
    small = spec()
    whole = count_embedding_parameters(small, 1) + 3 * count_layer_parameters(small, 1)
    assert whole + count_head_parameters(small, 1, has_embedding=True) == count_parameters(small)
    assert count_head_parameters(small, 1, has_embedding=False) == 2 * 32 + 128 * 32
    assert count_head_parameters(small, 2, has_embedding=False) == 2 * 32 + 64 * 32
    assert count_embedding_parameters(small, 2) == 64 * 32 + 16 * 32
    # two tensor ranks: matrices and their split biases halve, norms and the biases of the outputs do not
    assert count_layer_parameters(small, 2) == (96 * 32 + 96 + 32 * 32 + 2 * 80 * 32 + 80) // 2 + 2 * 32 + 4 * 32
    assert count_parameters(small) - count_parameters(small, padded=False) == 28 * 32


def test_flops_of_a_small_model_by_hand():
    """Each GEMM of [m, k] x [k, n] is 2 m k n operations, counted forward and twice backward."""
    flops = flops_per_token(spec())
    qkv, output, up, down = 2 * 32 * 96, 2 * 32 * 32, 2 * 32 * 80, 2 * 80 * 32
    scores, weighted = 2 * 16 * 32, 2 * 16 * 32
    assert flops.layers == 3 * 3 * (qkv + output + up + down)
    assert flops.attention == 3 * 3 * (scores + weighted)
    assert flops.head == 3 * 2 * 32 * 128
    assert flops.total == flops.layers + flops.attention + flops.head
    assert flops.palm == 6 * count_parameters(spec(), padded=False) + 12 * 3 * 32 * 16


@pytest.mark.parametrize("name", FAMILY)
def test_flops_agree_with_the_usual_estimate(name):
    """The two differ by positions, biases, norms and padding alone, under 1.5 % in all of the family."""
    flops = make_plan(load_config(name, []), model_gpus(name), None).flops
    assert flops.total == pytest.approx(flops.palm, rel=0.015)
    assert flops.total != flops.palm
