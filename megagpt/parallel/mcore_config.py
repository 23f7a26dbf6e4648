"""megatron-core's configuration object, generated from our numbers. No other file makes one."""

from dataclasses import dataclass

import torch
from megatron.core.model_parallel_config import ModelParallelConfig

from megagpt.model.spec import ModelSpec
from megagpt.parallel.mesh import Mesh

TORCH_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class McoreConfig(ModelParallelConfig):
    """ModelParallelConfig with the fields that the schedules read from mcore's larger TransformerConfig."""

    hidden_size: int = 0
    calculate_per_token_loss: bool = False
    fine_grained_activation_offloading: bool = False


def make_mcore_config(
    spec: ModelSpec, mesh: Mesh, precision: str, sequence_parallel: bool, virtual_stages: int
) -> McoreConfig:
    """The one mcore config of a run. Layers are left uninitialised: `model/init.py` fills them by global name."""
    dtype = TORCH_DTYPE[precision]
    return McoreConfig(
        hidden_size=spec.hidden_size,
        tensor_model_parallel_size=mesh.tensor_size,
        pipeline_model_parallel_size=mesh.pipeline_size,
        virtual_pipeline_model_parallel_size=virtual_stages if virtual_stages > 1 else None,
        # interleaving alternates chunks after this many micro-batches; the pipeline's depth is mcore's own default
        microbatch_group_size_per_vp_stage=mesh.pipeline_size,
        context_parallel_size=mesh.context_size,
        sequence_parallel=sequence_parallel and mesh.tensor_size > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        perform_initialization=False,
        use_cpu_initialization=mesh.device.type == "cpu",
        gradient_accumulation_fusion=False,  # training/build.py sets it where apex is
        deterministic_mode=False,
        calculate_per_token_loss=True,  # the schedule divides nothing: our loss function gives Σ loss / Σ tokens
        deallocate_pipeline_outputs=False,  # DeepSpeed's backward hooks hold the output tensor
        variable_seq_lengths=False,
        batch_p2p_comm=mesh.device.type == "cuda",  # gloo has no batched point-to-point
        overlap_p2p_comm=False,
        cross_entropy_loss_fusion=False,
    )
