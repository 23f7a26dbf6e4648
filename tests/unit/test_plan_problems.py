"""Every problem a plan can have: its words, all at once, and values that do work."""

import re

import pytest

from megagpt.config_file import load_config
from megagpt.errors import ConfigError
from megagpt.plan import make_plan

SMALL = [
    *("--model.num_layers=8", "--model.num_heads=8", "--model.hidden_size=64", "--model.sequence_length=64"),
    *("--model.vocab_size=1000", "--train.batch_tokens=4096", "--train.steps=10", "--train.warmup_tokens=0"),
]


def small_plan(*arguments, gpus=8, vocab=None, memory=None):
    return make_plan(load_config(None, [*SMALL, *arguments]), gpus, vocab, memory)


def problems_of(*arguments, gpus=8, vocab=None, memory=None):
    with pytest.raises(ConfigError) as caught:
        small_plan(*arguments, gpus=gpus, vocab=vocab, memory=memory)
    return caught.value.problems


ONE_PROBLEM = [
    (
        ("--train.fp8=true", "--train.precision=fp16"),
        'train.fp8 = true (command line) does not work with train.precision = "fp16" (command line): float8 products '
        'have bf16 inputs and outputs; use train.precision = "bf16", or train.fp8 = false',
    ),
    (
        ("--train.fp8=true", "--parallel.tensor=8"),
        "train.fp8 = true (command line) needs multiples of 16 in every dim of a matrix product, but "
        "model.hidden_size = 64 (command line), 8 on each rank; use a multiple of 128, or train.fp8 = false",
    ),
    (
        ("--train.fp8=true", "--model.ffn_hidden_size=100"),
        "train.fp8 = true (command line) needs multiples of 16 in every dim of a matrix product, but "
        "model.ffn_hidden_size = 100 (command line); use a multiple of 16, or train.fp8 = false",
    ),
    (
        ("--model.vocab_size=null",),
        "model.vocab_size = unset (command line) and no tokenizer gives it: tokenizer.path = unset (default); "
        "train that",
    ),
    (
        ("--model.num_heads=5",),
        "model.num_heads = 5 (command line) does not divide model.hidden_size = 64 (command line); use 1, 2, 4",
    ),
    (
        ("--model.ffn_hidden_size=100", "--parallel.tensor=8"),
        "parallel.tensor = 8 (command line) does not divide model.ffn_hidden_size = 100 (command line); use 1, 2 or 4",
    ),
    (
        ("--model.vocab_multiple=1", "--model.vocab_size=1001", "--parallel.tensor=2"),
        "parallel.tensor = 2 (command line) does not divide the padded vocabulary, 1001 = 1001 rounded up to a "
        "multiple of "
        "model.vocab_multiple = 1 (command line); use 1, or model.vocab_multiple = 2",
    ),
    (
        ("--parallel.sequence_parallel=true",),
        "parallel.sequence_parallel = true (command line) needs tensor ranks, but there is parallel.tensor = 1 "
        "(default); "
        "use parallel.sequence_parallel = false, or parallel.tensor of 2 or more",
    ),
    (
        (
            "--parallel.sequence_parallel=true",
            "--parallel.tensor=4",
            "--model.sequence_length=66",
            "--train.batch_tokens=6600",
        ),
        "parallel.sequence_parallel = true (command line): parallel.tensor = 4 (command line) does not divide "
        "model.sequence_length = 66 (command line); use 2, or parallel.sequence_parallel = false",
    ),
    (
        ("--parallel.virtual_stages=2",),
        "parallel.virtual_stages = 2 (command line) needs a pipeline to interleave, but there is parallel.pipeline = 1 "
        "(default); use parallel.virtual_stages = 1, or parallel.pipeline of 2 or more",
    ),
    (
        ("--parallel.pipeline=4", "--parallel.virtual_stages=4"),
        "parallel.pipeline = 4 (command line) times parallel.virtual_stages = 4 (command line) makes 16 chunks, more "
        "than model.num_layers = 8 (command line); use parallel.pipeline of at most 2, or parallel.virtual_stages of "
        "at most 2, or model.num_layers of 16 or more",
    ),
    (
        ("--parallel.pipeline=2", "--parallel.stage_layers=3,4,1"),
        "parallel.stage_layers = [3, 4, 1] (command line) has 3 numbers, but parallel.pipeline = 2 (command line) "
        "times parallel.virtual_stages = 1 (default) makes 2 chunks; give 2, or unset it",
    ),
    (
        ("--parallel.pipeline=2", "--parallel.stage_layers=3,4"),
        "parallel.stage_layers = [3, 4] (command line) adds up to 7, not to model.num_layers = 8 (command line); "
        "change a number by 1, or unset it",
    ),
    (
        ("--parallel.zero_stage=0", "--train.precision=fp16"),
        'parallel.zero_stage = 0 (command line) does not work with train.precision = "fp16" (command line): DeepSpeed '
        "adds 16-bit gradients up in fp32 with ZeRO alone (runtime/engine.py, _do_optimizer_sanity_check); use 1, 2 or "
        '3, or train.precision = "fp32"',
    ),
    (
        ("--parallel.zero_stage=2", "--parallel.pipeline=2"),
        "parallel.zero_stage = 2 (command line) does not work with parallel.pipeline = 2 (command line): ZeRO 2 and 3 "
        "reduce gradients inside the backward pass, before the tied embedding's gradients are summed",
    ),
    (
        ("--parallel.offload_optimizer=cpu", "--parallel.zero_stage=0", "--train.precision=fp32"),
        'parallel.offload_optimizer = "cpu" (command line) needs optimizer state that ZeRO partitions, but there is '
        "parallel.zero_stage = 0 (command line); use parallel.zero_stage = 1, 2 or 3, or parallel.offload_optimizer = "
        '"none"',
    ),
    (
        ("--train.batch_tokens=5000",),
        "train.batch_tokens = 5000 (command line) is not a multiple of model.sequence_length = 64 (command line); "
        "use 4992 or 5056",
    ),
    (
        ("--train.batch_tokens=40",),
        "train.batch_tokens = 40 (command line) is not a multiple of model.sequence_length = 64 (command line); use 64",
    ),
    (
        ("--train.batch_ramp_tokens=9000", "--train.batch_ramp_start_tokens=100"),
        "train.batch_ramp_start_tokens = 100 (command line) is not a multiple of model.sequence_length = 64 (command "
        "line); use 64 or 128",
    ),
    (
        ("--train.batch_tokens=4032",),
        "train.batch_tokens = 4032 (command line), 63 sequences a step, does not divide over 8 data ranks; use "
        "train.batch_tokens = 3584 or 4096, or 7 or 9 GPUs",
    ),
    (
        ("--train.micro_batch_size=3",),
        "train.micro_batch_size = 3 (command line) does not divide the 8 sequences of each of 8 data ranks, from "
        "train.batch_tokens = 4096 (command line); use 1, 2, 4 or 8, or train.batch_tokens = 3072 or 4608",
    ),
    (
        ("--train.batch_ramp_tokens=9000", "--train.batch_ramp_start_tokens=256"),
        "train.batch_ramp_start_tokens = 256 (command line), 4 sequences a step, does not divide over 8 data "
        "ranks; use "
        "512, 1024, 2048 or 4096, or train.batch_ramp_tokens = 0 for no ramp",
    ),
    (
        ("--train.batch_ramp_tokens=9000", "--train.batch_ramp_start_tokens=1536"),
        "train.batch_ramp_start_tokens = 1536 (command line): the batch grows by as much a time, which never reaches "
        "train.batch_tokens = 4096 (command line); use 512, 1024, 2048 or 4096, or train.batch_ramp_tokens = 0 "
        "for no ramp",
    ),
    (
        ("--parallel.pipeline=4", "--parallel.virtual_stages=2", "--train.micro_batch_size=16"),
        "parallel.virtual_stages = 2 (command line) with parallel.pipeline = 4 (command line) needs a multiple of 4 "
        "micro-batches a step, and the full batch has 2 (train.batch_tokens = 4096 (command line), 2 data ranks, "
        "train.micro_batch_size = 16 (command line)); use train.micro_batch_size = 1, 2, 4 or 8, or "
        "train.batch_tokens = "
        "8192, or parallel.virtual_stages = 1",
    ),
    (
        (
            *("--parallel.pipeline=4", "--parallel.virtual_stages=2", "--train.batch_ramp_tokens=9000"),
            "--train.batch_ramp_start_tokens=1024",
            "--train.micro_batch_size=4",
        ),
        "parallel.virtual_stages = 2 (command line) with parallel.pipeline = 4 (command line) needs a multiple of 4 "
        "micro-batches a step, and during the batch ramp the batches of 16 or 48 sequences have not "
        "(train.batch_ramp_start_tokens = 1024 (command line), 2 data ranks, train.micro_batch_size = 4 (command "
        "line)); "
        "use train.batch_ramp_start_tokens = 2048 or 4096, train.batch_ramp_tokens = 0 for no ramp, or "
        "parallel.virtual_stages = 1",
    ),
    (
        ("--data.split=0.9,0.2,0",),
        "data.split = [0.9, 0.2, 0.0] (command line) sums to 1.1; the three shares must sum to 1, such as [0.98",
    ),
    (
        ("--data.split=0,0.5,0.5",),
        "data.split = [0.0, 0.5, 0.5] (command line) leaves nothing to train on; the first share must be over 0",
    ),
    (
        ("--train.warmup_tokens=300", "--train.decay_tokens=200"),
        "train.warmup_tokens = 300 (command line) is over train.decay_tokens = 200 (command line), where the decay of "
        'train.lr_schedule = "cosine" (default) ends; use at most 200, or train.decay_tokens of at least 300',
    ),
    (
        (
            "--train.warmup_tokens=150",
            "--train.decay_tokens=200",
            "--train.lr_schedule=wsd",
            "--train.wsd_decay_share=0.5",
        ),
        'train.warmup_tokens = 150 (command line) is over 100, where the decay of train.lr_schedule = "wsd" (command '
        "line) begins: the last train.wsd_decay_share = 0.5 (command line) of train.decay_tokens = 200 (command line); "
        "use at most 100",
    ),
    (
        ("--parallel.offload_parameters=cpu",),
        'parallel.offload_parameters = "cpu" (command line) needs parameters that ZeRO 3 partitions, but there is '
        "parallel.zero_stage = 1 (default); use parallel.zero_stage = 3, or parallel.offload_parameters = "
        '"none"',
    ),
    (
        ("--parallel.offload_parameters=nvme", "--parallel.zero_stage=3"),
        'parallel.offload_parameters = "nvme" (command line) needs a folder on a local disk, but there is '
        "parallel.nvme_folder = unset (default); set parallel.nvme_folder",
    ),
    (
        ("--parallel.context=8", "--parallel.tensor=1", "--model.num_heads=4"),
        "parallel.context = 8 (command line) does not divide the 4 heads that parallel.tensor = 1 (command line) "
        "leaves of model.num_heads = 4 (command line): attention gives each context rank whole heads; use 1, 2 or 4",
    ),
    (
        (
            *("--parallel.context=4", "--parallel.tensor=2", "--parallel.sequence_parallel=true"),
            *("--model.sequence_length=60", "--train.batch_tokens=6000"),
        ),
        "parallel.context = 4 (command line) times parallel.tensor = 2 (command line) with sequence parallelism does "
        "not divide model.sequence_length = 60 (command line); use 1 or 2",
    ),
    (
        ("--train.lr_schedule=noam",),
        'train.warmup_tokens = 0 (command line) with train.lr_schedule = "noam" (command line): noam\'s peak is '
        "the end "
        "of warm-up; use 1 or more",
    ),
    (
        ("--faults.spike_factor=7", "--checkpoint.interval_steps=0"),
        "faults.spike_factor = 7.0 (command line), but with checkpoint.interval_steps = 0 (command line) there is no "
        "checkpoint to go back to; use 1 or more",
    ),
    (
        ("--faults.spike_factor=7", "--checkpoint.interval_steps=30"),
        "faults.spike_factor = 7.0 (command line), but checkpoint.keep = 3 (default) with checkpoint.interval_steps = "
        "30 (command line) keeps checkpoints of at most 60 steps ago, and going back needs 102 (faults.rewind_steps = "
        "100 (default), faults.spike_patience_steps = 3 (default)); use checkpoint.keep of at least 5",
    ),
    (
        ("--train.attention_backend=varlen", "--model.attention_dropout=0.1"),
        'train.attention_backend = "varlen" (command line) does not work with model.attention_dropout = 0.1 (command '
        "line); use auto, sdpa, sdpa_flash, sdpa_cudnn, sdpa_efficient, flash_attn or triton",
    ),
    (
        ("--train.attention_backend=sdpa_cudnn", "--data.separate_documents=true"),
        'train.attention_backend = "sdpa_cudnn" (command line) does not work with data.separate_documents = true '
        "(command line); use auto, native, sdpa, sdpa_efficient, varlen, flex, flash_attn, transformer_engine or "
        "triton",
    ),
    (
        ("--train.attention_backend=flash_attn", "--train.precision=fp32"),
        'train.attention_backend = "flash_attn" (command line) does not work with train.precision = "fp32" (command '
        "line); use auto, native, sdpa, sdpa_efficient, flex or triton",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), ONE_PROBLEM)
def test_problem(arguments, message):
    problems = problems_of(*arguments)
    assert len(problems) == 1, problems
    assert problems[0].startswith(message)


def test_the_designs_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.toml").write_text("[model]\nnum_heads = 16\nhidden_size = 1024\nvocab_size = 50257\n")
    (tmp_path / "x.toml").write_text('base = "base.toml"\n[parallel]\ntensor = 3\n')
    with pytest.raises(ConfigError) as caught:
        make_plan(load_config("x.toml", []), 24, None)
    assert caught.value.problems[0] == (
        "parallel.tensor = 3 (x.toml) does not divide model.num_heads = 16 (base.toml); use 1, 2, 4, 8 or 16"
    )


def test_problems_of_the_mesh():
    assert problems_of("--parallel.tensor=2", "--parallel.pipeline=4", gpus=12) == [
        "parallel.tensor = 2 (command line) times parallel.pipeline = 4 (command line) is 8, which does not divide "
        "12 GPUs; use 8 or 16 GPUs, or parallel.pipeline = 1, 2, 3 or 6, or parallel.tensor = 1"
    ]
    assert problems_of("--parallel.tensor=8", "--parallel.pipeline=2", gpus=4) == [
        "parallel.tensor = 8 (command line) times parallel.pipeline = 2 (command line) is 16, which does not divide "
        "4 GPUs; use 16 GPUs, or parallel.tensor = 1 or 2"
    ]
    assert problems_of("--parallel.tensor=2", "--parallel.context=2", gpus=6) == [
        "parallel.tensor = 2 (command line) times parallel.context = 2 (command line) times parallel.pipeline = 1 "
        "(default) is 4, which does not divide 6 GPUs; use 4 or 8 GPUs, or parallel.tensor = 1"
    ]
    (feed_forward,) = problems_of(
        "--parallel.tensor=8", "--model.num_heads=8", "--model.hidden_size=72", "--model.ffn_hidden_size=12"
    )
    assert "does not divide model.ffn_hidden_size = 12 (command line); use 1, 2 or 4" in feed_forward
    with pytest.raises(ConfigError, match="a run needs at least 1 GPU or rank, not 0"):
        small_plan(gpus=0)


def test_every_problem_at_once():
    problems = problems_of(
        *("--model.vocab_size=10", "--model.num_heads=5", "--parallel.tensor=3", "--parallel.pipeline=3"),
        *(
            "--parallel.zero_stage=2",
            "--parallel.sequence_parallel=true",
            "--train.batch_tokens=5000",
            "--data.split=1,1,1",
        ),
        *("--train.warmup_tokens=300", "--train.decay_tokens=200"),
        vocab=11,
    )
    keys = [problem.split(" = ")[0] for problem in problems]
    assert keys == [
        *("model.vocab_size", "model.num_heads", "parallel.tensor", "parallel.tensor", "parallel.tensor"),
        *("parallel.sequence_parallel", "parallel.tensor", "parallel.zero_stage"),
        *("train.batch_tokens", "data.split", "train.warmup_tokens"),
    ]


def test_a_tokenizer_larger_than_the_vocabulary():
    assert problems_of("--tokenizer.path=t.model", vocab=1001) == [
        'model.vocab_size = 1000 (command line) is less than the 1001 ids of tokenizer.path = "t.model" (command '
        "line); "
        "use at least 1001, or unset it"
    ]


OFFERS = [
    (("--parallel.tensor=16",), "parallel.tensor", 16),
    (("--parallel.pipeline=5", "--train.batch_tokens=12288"), "parallel.pipeline", 24),
    (("--parallel.context=3", "--train.batch_tokens=12288"), "parallel.context", 24),
    (("--train.micro_batch_size=3",), "train.micro_batch_size", 8),
    (("--train.batch_tokens=5000",), "train.batch_tokens", 1),
    (("--train.batch_tokens=4032",), "train.batch_tokens", 8),
    (("--train.batch_ramp_tokens=9000", "--train.batch_ramp_start_tokens=256"), "train.batch_ramp_start_tokens", 8),
    (("--train.batch_ramp_tokens=9000", "--train.batch_ramp_start_tokens=1536"), "train.batch_ramp_start_tokens", 8),
    (ONE_PROBLEM[20][0], "train.micro_batch_size", 8),
    (ONE_PROBLEM[21][0], "train.batch_ramp_start_tokens", 8),
]


@pytest.mark.parametrize(("arguments", "key", "gpus"), OFFERS)
def test_values_that_a_problem_offers_do_work(arguments, key, gpus):
    problem = next(problem for problem in problems_of(*arguments, gpus=gpus) if key in problem)
    offer = re.search(rf"; use (?:.*?{re.escape(key)} = )?((?:\d+(?:, | or )?)+)", problem)
    values = re.findall(r"\d+", offer[1])
    assert values
    for value in values:
        assert small_plan(*arguments, f"--{key}={value}", gpus=gpus)


def test_memory_that_does_not_fit_names_its_parts():
    (problem,) = problems_of(gpus=1, memory=0.001)
    assert re.match(
        r"a GPU of pipeline rank 0 needs \d\.\d\d GiB \(weights [\d.]+, gradients [\d.]+, optimizer [\d.]+, "
        r"activations [\d.]+, logits [\d.]+, temporary [\d.]+\), more than the 0\.001 GiB it has; "
        r"use more tensor or pipeline ranks, .*"
        r"parallel\.tensor = 1 \(default\), .*train\.recompute = \"none\" \(default\)$",
        problem,
    )
    assert small_plan(gpus=1, memory=1).peak_memory.total_bytes < 2**30
