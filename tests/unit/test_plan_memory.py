"""Memory of a GPU by part, against numbers worked out by hand from the formulae that plan_memory.py states."""

import pytest

from megagpt.config_file import load_config
from megagpt.plan import make_plan
from megagpt.plan_layout import make_layout
from megagpt.plan_memory import chunks_in_flight

H, F, S, V, HEADS, LAYERS = 64, 256, 32, 1024, 8, 8
MODEL = [
    *(f"--model.num_layers={LAYERS}", f"--model.num_heads={HEADS}", f"--model.hidden_size={H}"),
    *(f"--model.sequence_length={S}", f"--model.vocab_size={V}", "--train.batch_tokens=8192", "--train.steps=1"),
    "--train.warmup_tokens=0",
]
PARAMETERS = LAYERS * (12 * H * H + 13 * H) + (V + S) * H + 2 * H


def memory(*arguments, gpus=1):
    return make_plan(load_config(None, [*MODEL, *arguments]), gpus, None).memory


@pytest.mark.parametrize(
    ("zero_stage", "precision", "weights", "gradients", "optimizer"),
    [
        (0, "fp32", 4, 4, 8),
        (1, "fp32", 4, 4, 12 / 4),
        (1, "fp16", 2, 4, 12 / 4),
        (2, "bf16", 2, 4 / 4, 12 / 4),
        (2, "fp32", 4, 4 / 4, 12 / 4),
    ],
)
def test_states(zero_stage, precision, weights, gradients, optimizer):
    (gpu,) = memory(f"--parallel.zero_stage={zero_stage}", f"--train.precision={precision}", gpus=4)
    assert gpu.weights_bytes == weights * PARAMETERS
    assert gpu.gradients_bytes == gradients * PARAMETERS
    assert gpu.optimizer_bytes == optimizer * PARAMETERS


def test_zero_3_divides_weights_but_holds_gathered_ones():
    (gpu,) = memory("--parallel.zero_stage=3", gpus=4)
    assert gpu.weights_bytes == 2 * PARAMETERS / 4 + 2 * PARAMETERS, "all of a small model"
    plan = make_plan(load_config("gpt3-13b", ["--parallel.zero_stage=3"]), 32, None)
    parameters = plan.parameters.per_rank[0]
    assert parameters > 10**9
    assert plan.memory[0].weights_bytes == -(-2 * parameters // plan.layout.data) + 2 * 10**9


def test_zero_2_and_3_reduce_buckets_beside_the_activations():
    assert [memory(f"--parallel.zero_stage={stage}", gpus=4)[0].temporary_bytes for stage in (1, 2, 3)] == [
        *(0, (8 + 2) * PARAMETERS),
        10 * PARAMETERS,
    ]
    plan = make_plan(load_config("gpt3-13b", ["--parallel.zero_stage=2"]), 32, None)
    assert plan.memory[0].temporary_bytes == 8 * 10**8 + 2 * plan.parameters.per_rank[0]


def test_activations_are_korthikantis_without_the_scores():
    """32 S B H a layer in half precision and 2 S B H of dropout masks, which are one byte there and two here."""
    (gpu,) = memory("--train.micro_batch_size=2", "--train.recompute=selective")
    assert gpu.activations_bytes == 2 * S * (LAYERS * 32 * H + 4 * H)
    (gpu,) = memory("--train.micro_batch_size=2", "--model.hidden_dropout=0.1", "--train.recompute=selective")
    assert gpu.activations_bytes == 2 * S * (LAYERS * (32 + 4) * H + 2 * H + 4 * H)
    (gpu,) = memory("--train.micro_batch_size=2")
    assert gpu.activations_bytes == 2 * S * (LAYERS * (32 * H + 4 * HEADS) + 4 * H)
    (gpu,) = memory("--train.micro_batch_size=2", "--train.precision=fp32", "--train.recompute=selective")
    assert gpu.activations_bytes == 2 * S * (LAYERS * 64 * H + 8 * H)


def test_tensor_and_sequence_parallel_divide_activations():
    """Without dropout 8 + 24 / t of 32 parts; with sequence parallelism 32 / t (Korthikanti et al. 2022, table 2)."""
    common = ("--parallel.tensor=4", "--train.recompute=selective")
    (gpu,) = memory(*common, gpus=4)
    assert gpu.activations_bytes == S * (LAYERS * (8 + 24 / 4) * H + 4 * H)
    (gpu,) = memory(*common, "--parallel.sequence_parallel=true", gpus=4)
    assert gpu.activations_bytes == S * (LAYERS * 32 / 4 * H + 4 * H / 4)


def test_full_recompute_keeps_layer_inputs_and_one_layer():
    (gpu,) = memory("--train.recompute=full")
    assert gpu.activations_bytes == S * (LAYERS * 2 * H + (32 * H + 4 * HEADS) + 4 * H)


def test_every_second_layer_recomputed():
    (gpu,) = memory("--train.recompute=full", "--train.recompute_every=2")
    layer = 32 * H + 4 * HEADS
    assert gpu.activations_bytes == S * (LAYERS // 2 * 2 * H + LAYERS // 2 * layer + layer + 4 * H)
    (gpu,) = memory("--train.recompute=full", "--train.recompute_every=3")  # layers 0, 3 and 6
    assert gpu.activations_bytes == S * (3 * 2 * H + (LAYERS - 3) * layer + layer + 4 * H)


def test_context_ranks_divide_tokens_and_share_the_states():
    (whole,) = memory("--train.micro_batch_size=2")
    (part,) = memory("--train.micro_batch_size=2", "--parallel.context=4", gpus=8)
    assert part.activations_bytes == whole.activations_bytes / 4
    assert part.logits_bytes - 2 * V * H == (whole.logits_bytes - 2 * V * H) / 4
    assert part.optimizer_bytes == whole.optimizer_bytes / 8


def test_unequal_stages_count_their_own_layers():
    ranks = memory("--parallel.pipeline=3", "--parallel.stage_layers=2,5,1", "--train.recompute=selective", gpus=3)
    layer = S * 32 * H
    assert [gpu.activations_bytes for gpu in ranks] == [3 * 2 * layer, 2 * 5 * layer, layer + 4 * S * H]


@pytest.mark.parametrize(("zero_stage", "gradients", "host"), [(1, 4.0, 18 / 4), (2, 0.0, 22 / 4), (3, 0.0, 22 / 4)])
def test_offloaded_optimizer(zero_stage, gradients, host):
    (gpu,) = memory(f"--parallel.zero_stage={zero_stage}", "--parallel.offload_optimizer=cpu", gpus=4)
    assert gpu.optimizer_bytes == 0
    assert gpu.gradients_bytes == gradients * PARAMETERS
    assert (gpu.host_bytes, gpu.disk_bytes) == (host * PARAMETERS, 0)


def test_offloaded_parameters():
    (gpu,) = memory("--parallel.zero_stage=3", "--parallel.offload_parameters=cpu", gpus=4)
    assert (gpu.weights_bytes, gpu.host_bytes, gpu.disk_bytes) == (2 * PARAMETERS, 2 * PARAMETERS / 4, 0)
    largest = 2 * (V + S) * H
    (gpu,) = memory(
        "--parallel.zero_stage=3", "--parallel.offload_parameters=nvme", "--parallel.nvme_folder=/disk", gpus=4
    )
    assert (gpu.weights_bytes, gpu.host_bytes, gpu.disk_bytes) == (largest, 10**9, 2 * PARAMETERS / 4)


def test_logits():
    """A chunk of them, here of all tokens, and the gradient of the token table; in fp16 also its sum in fp32."""
    (gpu,) = memory("--train.micro_batch_size=2")
    assert gpu.logits_bytes == 2 * (2 * S * V + V * H)
    (gpu,) = memory("--train.micro_batch_size=2", "--train.precision=fp16")
    assert gpu.logits_bytes == 2 * (2 * S * V + V * H) + 4 * V * H
    first, last = memory("--parallel.tensor=2", "--parallel.pipeline=2", "--train.precision=fp32", gpus=4)
    assert first.logits_bytes == 0
    assert last.logits_bytes == 4 * (S * V + V * H) // 2


def test_logits_of_many_tokens_exist_in_chunks():
    for micro_batch, tokens, table_bytes in ((1, 1024, 2), (8, 4096, 2), (32, 5120, 6)):
        arguments = [f"--train.micro_batch_size={micro_batch}", "--train.batch_ramp_tokens=0"]
        plan = make_plan(load_config("gpt3-2.7b", arguments), 8, None)
        width = plan.spec.padded_vocab_size
        assert plan.layout.tensor == 1
        assert plan.memory[-1].logits_bytes == 2 * tokens * width + table_bytes * width * 2560


def test_total_is_the_sum_of_the_parts_and_the_peak_is_the_fullest():
    plan = make_plan(load_config(None, [*MODEL, "--parallel.pipeline=4"]), 4, None)
    for gpu in plan.memory:
        assert gpu.total_bytes == sum(size for _, size in gpu.parts)
    assert [name for name, _ in plan.memory[0].parts] == [
        *("weights", "gradients", "optimizer", "activations", "logits"),
        "temporary",
    ]
    assert plan.peak_memory.total_bytes == max(gpu.total_bytes for gpu in plan.memory)


@pytest.mark.parametrize(
    ("pipeline", "virtual", "num_micro_batches", "expected"),
    [
        (1, 1, 8, [1]),
        (4, 1, 8, [4, 3, 2, 1]),
        (4, 1, 2, [2, 2, 2, 1]),
        (2, 2, 8, [5, 3]),
        (4, 2, 8, [11, 9, 7, 5]),
        (4, 2, 4, [8, 8, 7, 5]),
    ],
)
def test_chunks_in_flight(pipeline, virtual, num_micro_batches, expected):
    config = load_config(None, [f"--parallel.pipeline={pipeline}", f"--parallel.virtual_stages={virtual}"]).config
    layout = make_layout(config.parallel, 8, pipeline)
    assert [chunks_in_flight(layout, rank, num_micro_batches) for rank in range(pipeline)] == expected


def test_a_pipeline_rank_holds_its_micro_batches_in_flight():
    """Layers a rank times micro-batches in flight: the first of four ranks holds 2 x 4 layers' activations."""
    ranks = memory("--parallel.pipeline=4", "--train.recompute=selective", gpus=4)
    layer = S * 32 * H
    assert [gpu.activations_bytes for gpu in ranks] == [8 * layer, 6 * layer, 4 * layer, 2 * layer + 4 * S * H]
