"""The plan: the shipped configurations, the stages, and every problem with values that do work."""

import re

import pytest

from megagpt.config_file import load_config
from megagpt.errors import ConfigError
from megagpt.model.names import local_shape, parameter_shapes
from megagpt.plan import make_plan

# name: layers, heads, d_model, peak learning rate, batch in tokens
FAMILY = {
    "gpt3-base": (12, 12, 768, 6.0e-4, 524_288),
    "gpt3-large": (24, 16, 1024, 3.0e-4, 524_288),
    "gpt3-1.3b": (24, 32, 2048, 2.0e-4, 2_097_152),
    "gpt3-2.7b": (32, 32, 2560, 1.6e-4, 2_097_152),
    "gpt3-13b": (40, 40, 5120, 1.0e-4, 6_291_456),
    "gpt3-30b": (48, 56, 7168, 1.0e-4, 6_291_456),
    "gpt3-175b": (96, 96, 12288, 1.2e-4, 6_291_456),
}
SMALL = [
    *("--model.num_layers=8", "--model.num_heads=8", "--model.hidden_size=64", "--model.sequence_length=64"),
    *("--model.vocab_size=1000", "--train.batch_tokens=4096", "--train.steps=10", "--train.warmup_tokens=0"),
]


def small_plan(*arguments, gpus=8, vocab=None, memory=None):
    return make_plan(load_config(None, [*SMALL, *arguments]), gpus, vocab, memory)


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_has_exactly_its_numbers(name):
    config = load_config(name, []).config
    model, train = config.model, config.train
    layers, heads, hidden, lr, batch_tokens = FAMILY[name]
    assert (model.num_layers, model.num_heads, model.hidden_size, train.lr) == (layers, heads, hidden, lr)
    assert train.batch_tokens == batch_tokens
    assert (model.sequence_length, model.ffn_hidden_size, model.vocab_size) == (2048, 4 * hidden, 50257)
    assert (train.beta1, train.beta2, train.epsilon, train.weight_decay, train.clip_grad) == (0.9, 0.95, 1e-8, 0.1, 1.0)
    assert (train.tokens, train.warmup_tokens, train.decay_tokens) == (300 * 10**9, 375 * 10**6, 260 * 10**9)
    assert (train.lr_schedule, train.min_lr_ratio, train.precision) == ("cosine", 0.1, "bf16")
    assert train.batch_ramp_start_tokens == 32_768
    assert 4 * 10**9 <= train.batch_ramp_tokens <= 12 * 10**9
    assert (model.init_std, model.activation, config.run.name) == (0.02, "gelu_tanh", name)


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        *((name, gpus) for name in ("gpt3-base", "gpt3-large", "gpt3-1.3b", "gpt3-2.7b") for gpus in (1, 2, 4, 8, 16)),
        *(("gpt3-13b", gpus) for gpus in (8, 16, 64, 128)),
        *(("gpt3-30b", gpus) for gpus in (32, 64, 256, 512)),
        *(("gpt3-175b", gpus) for gpus in (128, 256, 1024, 2048)),
    ],
)
def test_the_family_plans(name, gpus):
    plan = make_plan(load_config(name, []), gpus, None, gpu_memory_gib=80)
    layout = plan.layout
    assert layout.world_size == gpus == layout.tensor * layout.pipeline * layout.data
    assert plan.batches.total_tokens >= 300 * 10**9
    assert plan.learning_rate(0) > 0
    assert plan.learning_rate(plan.num_steps - 1) == pytest.approx(0.1 * plan.config.train.lr)
    assert plan.notes == ()


@pytest.mark.parametrize("name", FAMILY)
def test_on_1024_gpus_the_family_plans_or_says_what_would(name):
    try:
        make_plan(load_config(name, []), 1024, None)
    except ConfigError as error:
        assert name != "gpt3-175b"
        for problem in error.problems:
            assert re.match(
                rf"train\.\w+ = \d+ \(.*{re.escape(name)}\.toml\).*; use (train\.batch_tokens = )?\d", problem
            ) or ("; use a multiple of 2097152 that divides the train.batch_tokens you choose instead" in problem)


def test_every_shipped_configuration_plans():
    from megagpt.config_file import shipped_names

    names = shipped_names()
    assert {*FAMILY, "quickstart"} <= set(names)
    plan = make_plan(load_config("quickstart", []), 2, 8000)
    assert plan.layout.data == 2
    assert plan.spec.vocab_size == 8000
    assert plan.spec.padded_vocab_size == 8064
    assert plan.notes == ()


def test_stages_of_a_pipeline():
    plan = small_plan("--parallel.pipeline=4")
    found = [
        (s.pipeline_rank, s.chunk, s.first_layer, s.num_layers, s.has_embedding, s.has_head) for s in plan.layout.stages
    ]
    assert found == [
        (0, 0, 0, 2, True, False),
        (1, 0, 2, 2, False, False),
        (2, 0, 4, 2, False, False),
        (3, 0, 6, 2, False, True),
    ]


def test_interleaved_stages_follow_megatron():
    plan = small_plan("--parallel.pipeline=2", "--parallel.virtual_stages=2")
    found = [
        (s.pipeline_rank, s.chunk, s.first_layer, s.num_layers, s.has_embedding, s.has_head) for s in plan.layout.stages
    ]
    assert found == [
        (0, 0, 0, 2, True, False),
        (1, 0, 2, 2, False, False),
        (0, 1, 4, 2, False, False),
        (1, 1, 6, 2, False, True),
    ]
    assert [stage.first_layer for stage in plan.layout.chunks(1)] == [2, 6]


@pytest.mark.parametrize(
    "arguments", [(), ("--parallel.pipeline=2", "--parallel.virtual_stages=4"), ("--parallel.tensor=4",)]
)
def test_parameters_of_each_rank_by_name(arguments):
    """Counted parameter by parameter from the names each chunk holds."""
    plan = small_plan(*arguments)
    layout = plan.layout
    shapes = parameter_shapes(plan.spec)
    for rank, counted in enumerate(plan.parameters.per_rank):
        names = set()
        for stage in layout.chunks(rank):
            layers = range(stage.first_layer, stage.first_layer + stage.num_layers)
            names |= {name for name in shapes if name.startswith("layers.") and int(name.split(".")[1]) in layers}
            names |= {name for name in shapes if stage.has_embedding and name.startswith("embedding.")}
            if stage.has_head:
                names |= {"final_norm.weight", "final_norm.bias", "embedding.tokens.weight"}
        expected = 0
        for name in names:
            size = 1
            for n in local_shape(shapes[name], layout.tensor):
                size *= n
            expected += size
        assert counted == expected
    assert sum(stage.num_layers for stage in layout.stages) == 8


def test_spec_of_the_plan():
    plan = small_plan("--model.ffn_hidden_size=100", "--model.vocab_multiple=7", "--model.hidden_dropout=0.1", gpus=1)
    assert (plan.spec.ffn_hidden_size, plan.spec.padded_vocab_size, plan.spec.hidden_dropout) == (100, 1001, 0.1)
    assert small_plan(gpus=1).spec.ffn_hidden_size == 256
    assert small_plan("--model.vocab_size=null", gpus=1, vocab=300).spec.vocab_size == 300
    assert small_plan(gpus=1, vocab=300).spec.vocab_size == 1000


def test_learning_rate_and_flops_of_a_step():
    plan = small_plan("--train.warmup_tokens=40960", "--train.lr=1.0", gpus=1)
    assert plan.learning_rate(0) == pytest.approx(0.1)
    assert plan.learning_rate(9) == 1.0
    assert plan.flops_per_step == plan.flops.total * 4096


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (("--train.warmup_tokens=50000",), "train.warmup_tokens = 50000 .* is longer than the run of 40960 tokens"),
        (
            ("--train.batch_ramp_tokens=50000", "--train.batch_ramp_start_tokens=2048"),
            r"train\.batch_ramp_tokens = 50000 .*the batch never reaches",
        ),
        (("--train.tokens=1M",), r"train\.tokens = 1000000 .* is ignored: train\.steps = 10"),
    ],
)
def test_notes(arguments, note):
    (found,) = small_plan(*arguments, gpus=1).notes
    assert re.search(note, found)
