"""From a plan to this rank's model with its optimizer. Every rank of the mesh calls `build_engine` together."""

import torch
from megatron.core.tensor_parallel import layers
from torch import nn

from megagpt.config import TrainSection
from megagpt.model.context import StageBuild
from megagpt.model.gpt import GPTChunk
from megagpt.model.init import initialise
from megagpt.model.names import parameter_shapes
from megagpt.parallel.deepspeed_json import make_deepspeed_config
from megagpt.parallel.engine import Engine
from megagpt.parallel.mcore_config import McoreConfig, make_mcore_config
from megagpt.parallel.mesh import Mesh
from megagpt.plan import RunPlan


def build_engine(plan: RunPlan, mesh: Mesh) -> Engine:
    """This rank's chunks, initialised from the run's seed, in an Engine."""
    train = plan.config.train
    mcore = make_rank_mcore_config(plan, mesh)
    chunks = build_chunks(plan, mesh, mcore)
    deepspeed_config = make_deepspeed_config(train, plan.config.parallel)
    return Engine(chunks, mesh, mcore, deepspeed_config, make_optimizer(chunks, plan), train.clip_grad)


def make_rank_mcore_config(plan: RunPlan, mesh: Mesh) -> McoreConfig:
    """megatron-core's configuration of a plan."""
    layout = plan.layout
    config = make_mcore_config(
        plan.spec, mesh, plan.config.train.precision, layout.sequence_parallel, layout.virtual_stages
    )
    config.gradient_accumulation_fusion = fuses_weight_gradients(plan, mesh.device)
    return config


def fuses_weight_gradients(plan: RunPlan, device: torch.device) -> bool:
    """Whether the products of the backward pass add weight gradients to their float32 sums themselves.

    apex's extension does, on CUDA, into the buffers of parallel/bf16_update.py; a pass over memory for each weight and
    micro-batch is saved (unmeasured). Products in float8 are ours and do not.
    """
    train, parallel = plan.config.train, plan.config.parallel
    keeps_sums = train.precision == "bf16" and plan.layout.zero_stage == 1 and parallel.offload_optimizer == "none"
    has_apex = device.type == "cuda" and layers._grad_accum_fusion_available  # also False where it does not fit torch
    return keeps_sums and has_apex and not train.fp8


def build_chunks(plan: RunPlan, mesh: Mesh, mcore: McoreConfig) -> list[nn.Module]:
    """The model chunks of this rank, initialised from the run's seed."""
    train = plan.config.train
    build = StageBuild(
        plan.spec,
        mesh,
        mcore,
        train.recompute,
        train.recompute_every,
        train.fp8,
        train.compile,
        train.attention_backend,
    )
    chunks: list[nn.Module] = []
    for stage in plan.layout.chunks(mesh.pipeline_rank):
        chunk = GPTChunk(build, stage)
        initialise(chunk, plan.spec, plan.config.run.seed, mesh.tensor_rank, mesh.tensor_size)
        chunks.append(chunk)
    return chunks


def make_optimizer(chunks: list[nn.Module], plan: RunPlan) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) in two groups: matrices and tables decay, biases and norms do not.

    torch's fused form runs one kernel over all parameters, on CUDA and on the CPU.
    """
    train: TrainSection = plan.config.train
    infos = parameter_shapes(plan.spec)
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            (decay if infos[name].decay else no_decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": train.weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.epsilon, fused=True)
