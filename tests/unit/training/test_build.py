"""What the engine is made of: optimizer groups, DeepSpeed's JSON in every branch, megatron-core's settings, seeds."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.model_parallel_config import ModelParallelConfig

from megagpt.config_file import load_config
from megagpt.kernels.dropout import mix
from megagpt.model.names import parameter_shapes
from megagpt.parallel.deepspeed_json import NO_CLIPPING, make_deepspeed_config
from megagpt.parallel.mcore_config import make_mcore_config
from megagpt.plan import make_plan
from megagpt.training.build import make_optimizer
from megagpt.training.totals import StepTotals, dropout_seed
from tests.unit.model.small import small_spec


def by_name(names_and_shapes) -> torch.nn.Module:
    """A module whose parameters go by dotted names, as a chunk's do."""
    root = torch.nn.Module()
    for name, info in names_and_shapes.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(torch.ones(info.shape)))
    return root


def test_optimizer_groups():
    """Matrices and tables decay, biases and norms do not; the recipe's numbers reach AdamW."""
    arguments = [
        *("--model.num_layers=2", "--model.num_heads=4", "--model.hidden_size=32", "--model.sequence_length=16"),
        *("--model.vocab_size=100", "--train.batch_tokens=128", "--train.steps=5", "--train.warmup_tokens=0"),
        *(
            "--train.lr=3e-3",
            "--train.beta1=0.8",
            "--train.beta2=0.9",
            "--train.epsilon=1e-6",
            "--train.weight_decay=0.3",
        ),
    ]
    plan = make_plan(load_config(None, arguments), 1, None)
    chunk = by_name(parameter_shapes(plan.spec))
    optimizer = make_optimizer([chunk], plan)
    decay, no_decay = optimizer.param_groups
    name_of = {parameter: name for name, parameter in chunk.named_parameters()}
    kept = {name_of[parameter] for parameter in decay["params"]}
    assert kept == {
        *("embedding.tokens.weight", "embedding.positions.weight"),
        *(
            f"layers.{layer}.{name}.weight"
            for layer in range(2)
            for name in ("attention.qkv", "attention.output", "mlp.up", "mlp.down")
        ),
    }
    assert {name_of[parameter] for parameter in no_decay["params"]} == set(name_of.values()) - kept
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.3, 0.0)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (3e-3, (0.8, 0.9), 1e-6, True)
        assert group["amsgrad"] is False


def deepspeed_config(*arguments: str) -> dict[str, Any]:
    config = load_config(None, ["--train.precision=fp32", *arguments]).config
    return make_deepspeed_config(config.train, config.parallel)


def test_deepspeed_config_of_offloading():
    assert not {"offload_optimizer", "offload_param"} & set(deepspeed_config()["zero_optimization"])
    zero = deepspeed_config("--parallel.zero_stage=3", "--parallel.offload_optimizer=cpu")["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "offload_param" not in zero
    nvme = ["--parallel.zero_stage=3", "--parallel.offload_parameters=nvme", "--parallel.nvme_folder=/disk"]
    zero = deepspeed_config(*nvme)["zero_optimization"]
    assert zero["offload_param"] == {"device": "nvme", "pin_memory": True, "nvme_path": "/disk", "max_in_cpu": 0}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("clip_grad", [0.0, 1.0, 0.5])
def test_deepspeed_config_clips_where_deepspeed_can(zero_stage, clip_grad):
    config = deepspeed_config(f"--parallel.zero_stage={zero_stage}", f"--train.clip_grad={clip_grad}")
    assert config["zero_optimization"]["stage"] == zero_stage
    if zero_stage == 0:
        assert config["gradient_clipping"] == 0.0, "the engine clips itself"
    else:
        assert config["gradient_clipping"] == (clip_grad or NO_CLIPPING)


def test_deepspeed_config_of_fp32():
    config = deepspeed_config()
    assert not {"bf16", "fp16", "data_types"} & set(config)
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (1, 1)
    assert config["zero_optimization"]["overlap_comm"] is False
    assert config["communication_data_type"] == "fp32"
    assert "optimizer" not in config
    assert "scheduler" not in config


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_config_of_bf16(stage):
    config = deepspeed_config("--train.precision=bf16", f"--parallel.zero_stage={stage}")
    ours_adds_up = stage == 1  # parallel/bf16_update.py
    assert config["bf16"] == {"enabled": True, "immediate_grad_update": not ours_adds_up, "check_grad_overflow": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "fp16" not in config


def test_deepspeed_config_of_fp16():
    config = deepspeed_config(
        "--train.precision=fp16", "--train.fp16_initial_scale_power=12", "--train.fp16_scale_window_steps=77"
    )
    assert config["fp16"]["enabled"] is True
    assert config["fp16"]["loss_scale"] == 0, "0 means dynamic"
    assert (config["fp16"]["initial_scale_power"], config["fp16"]["loss_scale_window"]) == (12, 77)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "bf16" not in config


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_mcore_config_precision(precision, dtype):
    mesh = SimpleNamespace(tensor_size=1, context_size=1, pipeline_size=1, device=torch.device("cpu"))
    config = make_mcore_config(small_spec(), mesh, precision, False, 1)
    assert (config.params_dtype, config.pipeline_dtype) == (dtype, dtype)
    assert (config.fp16, config.bf16) == (precision == "fp16", precision == "bf16")
    assert config.hidden_size == 32
    assert config.virtual_pipeline_model_parallel_size is None
    assert config.perform_initialization is False
    assert isinstance(config, ModelParallelConfig)


def test_mcore_config_layout():
    mesh = SimpleNamespace(tensor_size=4, context_size=2, pipeline_size=3, device=torch.device("cpu"))
    config = make_mcore_config(small_spec(), mesh, "bf16", True, 2)
    assert (config.tensor_model_parallel_size, config.pipeline_model_parallel_size) == (4, 3)
    assert config.context_parallel_size == 2
    assert config.virtual_pipeline_model_parallel_size == 2
    assert config.microbatch_group_size_per_vp_stage == 3
    assert config.sequence_parallel is True
    assert (config.batch_p2p_comm, config.use_cpu_initialization) == (False, True)
    on_gpu = make_mcore_config(
        small_spec(),
        SimpleNamespace(tensor_size=1, context_size=1, pipeline_size=2, device=torch.device("cuda")),
        "bf16",
        False,
        1,
    )
    assert (on_gpu.batch_p2p_comm, on_gpu.use_cpu_initialization) == (True, False)


def test_mcore_config_needs_nothing_that_is_not_installed():
    mesh = SimpleNamespace(tensor_size=1, context_size=1, pipeline_size=1, device=torch.device("cpu"))
    config = make_mcore_config(small_spec(), mesh, "fp32", False, 1)
    assert config.gradient_accumulation_fusion is False, "needs apex"
    names = {field.name for field in fields(ModelParallelConfig)}
    assert {"gradient_accumulation_fusion", "deallocate_pipeline_outputs", "batch_p2p_comm"} <= names


def test_dropout_seeds_differ_by_run_step_and_rank():
    seeds = {dropout_seed(seed, step, rank) for seed in (1, 2, 1234) for step in range(300) for rank in range(16)}
    assert len(seeds) == 3 * 300 * 16
    assert dropout_seed(1, 2, 3) == dropout_seed(1, 2, 3)
    assert dropout_seed(1, 2, 3) != dropout_seed(1, 3, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(1, 2) not in seeds


def test_loss_of_totals():
    assert StepTotals(6.0, 4).loss == 1.5
    assert StepTotals(0.0, 0).loss != StepTotals(0.0, 0).loss, "no tokens: not a number"
