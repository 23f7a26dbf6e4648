"""Every name of megatron-core and DeepSpeed that we lean on: where we use it, and why. Nothing but the table.

A new version that lacks one would fail far from its cause, or train wrongly without a word, such as where an attribute
is set that nothing reads any more. `upstream_check.py` looks for all of them and says in a sentence what is missing; a
test keeps the table complete.
"""

from typing import NamedTuple

# versions that the tests pass with; any other is looked through before training starts
TESTED = {"megatron-core": ("0.16.1", "0.19.2"), "deepspeed": ("0.19.8",)}


class Upstream(NamedTuple):
    """Names that one of our files (its path is within megagpt/) takes from one module for one reason.

    Words in a text are separated by spaces. A name may be dotted: an attribute of a class, or of its instances.
    """

    module: str
    names: str  # empty: the module itself
    used_in: str
    why: str
    parameters: str = ""  # words that each of `names` takes; of a class: its constructor's parameters or its fields
    mentions: str = ""  # words in the source of each of `names`: what it reads of ours, or sets on what is ours
    value: str | None = None  # what `names` is equal to


# our config is megatron-core's ModelParallelConfig and a few fields; these two modules read it, and these fields of the
# larger TransformerConfig only for features that we do not use
CONFIG_READERS = ("megatron.core.pipeline_parallel.schedules", "megatron.core.pipeline_parallel.p2p_communication")
FIELDS_NOT_READ = ("cuda_graph_impl", "cuda_graph_scope", "mtp_num_layers", "num_moe_experts")

_STATE = "megatron.core.parallel_state"
_LAYERS = "megatron.core.tensor_parallel.layers"
_SCHEDULES = "megatron.core.pipeline_parallel.schedules"
_MESH, _ENGINE, _JSON, _CPU = "parallel/mesh.py", "parallel/engine.py", "parallel/deepspeed_json.py", "parallel/cpu.py"

_MEGATRON = [
    Upstream(
        _STATE,
        "initialize_model_parallel",
        _MESH,
        "cutting the ranks into axes",
        parameters="tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size "
        "context_parallel_size create_gloo_process_groups distributed_timeout_minutes",
    ),
    Upstream(
        _STATE,
        "get_tensor_model_parallel_rank get_pipeline_model_parallel_rank get_context_parallel_rank "
        "get_tensor_model_parallel_group get_pipeline_model_parallel_group get_context_parallel_group "
        "get_model_parallel_group",
        _MESH,
        "this rank's place and group on each axis",
    ),
    Upstream(
        _STATE,
        "get_data_parallel_world_size get_data_parallel_rank get_data_parallel_group",
        _MESH,
        "the data ranks, and with the context ranks the group that averages gradients",
        parameters="with_context_parallel",
    ),
    Upstream(
        _STATE,
        "is_rank_in_embedding_group get_embedding_group",
        _MESH,
        "the two ends of a pipeline, which share the tied table",
    ),
    Upstream(_STATE, "destroy_model_parallel", _MESH, "leaving the groups at the end"),
    Upstream(
        _LAYERS,
        "ColumnParallelLinear",
        "model/linear.py",
        "matrices whose rows are cut over tensor ranks",
        parameters="config init_method skip_bias_add tp_group",
    ),
    Upstream(
        _LAYERS,
        "RowParallelLinear",
        "model/linear.py",
        "matrices whose columns are cut over tensor ranks",
        parameters="config init_method bias input_is_parallel skip_bias_add tp_group",
    ),
    Upstream(
        _LAYERS,
        "ColumnParallelLinear._forward_impl RowParallelLinear._forward_impl",
        "model/own_product.py",
        "putting a product in float8 in the place of theirs",
        parameters="input weight",
        mentions="linear_with_grad_accumulation_and_async_allreduce",
    ),
    Upstream(
        "megatron.core.tensor_parallel.mappings",
        "copy_to_tensor_model_parallel_region gather_from_sequence_parallel_region",
        "model/own_product.py",
        "what their product does over tensor ranks beside multiplying",
        parameters="group",
    ),
    Upstream(
        "megatron.core.tensor_parallel.mappings",
        "gather_from_sequence_parallel_region",
        "model/own_product.py",
        "what their product does over tensor ranks beside multiplying",
        parameters="tensor_parallel_output_grad group",
    ),
    Upstream(
        _LAYERS,
        "VocabParallelEmbedding",
        "model/embedding.py",
        "the token table, cut over tensor ranks",
        parameters="init_method reduce_scatter_embeddings config tp_group",
    ),
    Upstream(
        _LAYERS,
        "",
        "parallel/bf16_update.py",
        "weight gradients that a product adds to their sums itself, by apex's extension",
        mentions="main_grad fused_weight_gradient_mlp_cuda wgrad_gemm_accum_fp32",
    ),
    Upstream(_LAYERS, "", _ENGINE, "which weights these are", mentions="gradient_accumulation_fusion"),
    Upstream(_LAYERS, "_grad_accum_fusion_available", "training/build.py", "whether that extension can be imported"),
    Upstream(
        "megatron.core.enums",
        "ModelType.encoder_or_decoder",
        "parallel/schedule.py",
        "what a schedule asks of a chunk",
    ),
    Upstream(
        "megatron.core.pipeline_parallel",
        "get_forward_backward_func",
        "parallel/schedule.py",
        "the schedule that fits the pipeline",
    ),
    Upstream(
        _SCHEDULES,
        "forward_backward_no_pipelining forward_backward_pipelining_without_interleaving "
        "forward_backward_pipelining_with_interleaving",
        "parallel/schedule.py",
        "running the micro-batches of a step",
        parameters="forward_step_func data_iterator model num_microbatches seq_length micro_batch_size forward_only",
    ),
    Upstream(
        _SCHEDULES,
        "",
        "parallel/schedule.py",
        "handing a chunk its input, and weighing the loss",
        mentions="set_input_tensor vp_stage grad_scale_func calculate_per_token_loss",
    ),
    Upstream(
        _SCHEDULES,
        "",
        "parallel/trace.py",
        "the moments at which passes begin and end",
        mentions="timers forward-compute backward-compute",
    ),
    Upstream(
        "megatron.core.model_parallel_config",
        "ModelParallelConfig",
        "parallel/mcore_config.py",
        "telling layers and schedules what to do",
        parameters="tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size "
        "microbatch_group_size_per_vp_stage context_parallel_size sequence_parallel params_dtype pipeline_dtype fp16 "
        "bf16 perform_initialization use_cpu_initialization gradient_accumulation_fusion deterministic_mode "
        "deallocate_pipeline_outputs variable_seq_lengths batch_p2p_comm overlap_p2p_comm cross_entropy_loss_fusion "
        "grad_scale_func timers",
    ),
    *[
        Upstream(module, "torch", _CPU, "putting buffers on the CPU where there is no CUDA")
        for module in (
            _LAYERS,
            "megatron.core.tensor_parallel.mappings",
            "megatron.core.tensor_parallel.utils",
            "megatron.core.pipeline_parallel.p2p_communication",
            "megatron.core.utils",
            _SCHEDULES,
        )
    ],
]

_PARTITION = "deepspeed.runtime.zero.partition_parameters"
_ZERO_CONFIG = "deepspeed.runtime.zero.config"
_OFFLOAD = "deepspeed.runtime.zero.offload_config"
_PRECISION = "deepspeed.runtime.precision_config"
# (module, class, ZeRO stages) of the optimizers that DeepSpeed may wrap ours in
_OPTIMIZERS = [
    ("deepspeed.runtime.zero.stage_1_and_2", "DeepSpeedZeroOptimizer", "1 and 2"),
    ("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3", "3"),
    ("deepspeed.runtime.bf16_optimizer", "BF16_Optimizer", "1 in bf16"),
]
_STAGE_12, _STAGE_3, _STAGE_BF16 = _OPTIMIZERS
_WORLD, _SHARDS = "rehearse/world.py", "rehearse/zero_shards.py"
_PIECES = "parallel/optimizer_pieces.py"
_JSON_KEYS = (  # of DeepSpeed's JSON; an unknown one is ignored without a word
    "TRAIN_MICRO_BATCH_SIZE_PER_GPU GRADIENT_ACCUMULATION_STEPS GRADIENT_CLIPPING PRESCALE_GRADIENTS STEPS_PER_PRINT "
    "WALL_CLOCK_BREAKDOWN ZERO_ALLOW_UNTESTED_OPTIMIZER ZERO_FORCE_DS_CPU_OPTIMIZER COMMUNICATION_DATA_TYPE DATA_TYPES "
    "GRAD_ACCUM_DTYPE"
)


def _engine(names: str, why: str, parameters: str = "") -> Upstream:
    return Upstream("deepspeed.runtime.engine", _of("DeepSpeedEngine", names), _ENGINE, why, parameters)


def _of(owner: str, names: str) -> str:
    return " ".join(f"{owner}.{name}" for name in names.split())


def _of_bf16(names: str) -> tuple[str, str]:
    """The module, and names of its optimizer."""
    return _STAGE_BF16[0], _of("BF16_Optimizer", names)


_DEEPSPEED = [
    Upstream(
        "deepspeed",
        "initialize",
        _ENGINE,
        "the engine that owns reduction, ZeRO and the update",
        parameters="model optimizer config mpu dist_init_required",
    ),
    Upstream(
        "deepspeed",
        "init_distributed",
        _ENGINE,
        "taking up process groups that run already",
        parameters="dist_init_required verbose",
    ),
    Upstream("deepspeed.launcher.runner", "", "launch/commands.py", "its launcher, started as a program"),
    _engine("optimizer module", "the optimizer and the module as DeepSpeed wraps them"),
    _engine("enable_backward_allreduce", "keeping the reduction out of the backward pass until our own sums are done"),
    _engine(
        "set_gradient_accumulation_boundary", "telling the last micro-batch of a step from the others", "is_boundary"
    ),
    _engine(
        "allreduce_gradients step get_global_grad_norm was_step_applied", "the reduction and the update that end a step"
    ),
    _engine("scale _manual_backward_expected", "scaling the loss of fp16 in backward passes that the schedule drives"),
    *[
        Upstream(
            module,
            f"{owner}.param_groups",
            _ENGINE,
            f"the learning rate under ZeRO {stages}",
        )
        for module, owner, stages in _OPTIMIZERS
    ],
    *[
        Upstream(
            module,
            " ".join(
                f"{owner}.{name}"
                for name in ("loss_scale", "loss_scaler", "averaged_gradients", "norm_for_param_grads")
            ),
            _ENGINE,
            f"the loss scale, and finding gradients that are not finite, under ZeRO {stages}",
        )
        for module, owner, stages in (_STAGE_12, _STAGE_3)
    ],
    Upstream(
        *_STAGE_12[:2],
        _ENGINE,
        "where fp16 gradients are added up, and counting the tied table once in their norm",
        mentions="grad_accum use_grad_accum_attribute ds_pipe_replicated",
    ),
    Upstream(*_of_bf16("bf16_groups"), _ENGINE, "telling bf16 with ZeRO 1 from the others"),
    Upstream(
        *_of_bf16(
            "optimizer bf16_groups bf16_groups_flat bf16_partitioned_groups fp32_groups_flat_partition "
            "fp32_groups_gradients fp32_groups_gradients_flat fp32_groups_gradient_flat_partition"
        ),
        "parallel/bf16_update.py",
        "the buffers that bf16 gradients are added up in, and masters and weights",
    ),
    *[
        Upstream(
            module,
            _of(owner, names),
            _PIECES,
            f"saving and filling masters and moments, and weights from masters, under ZeRO {stages}",
        )
        for (module, owner, stages), names in (
            (_STAGE_12, "optimizer single_partition_of_fp32_groups parallel_partitioned_bit16_groups"),
            (_STAGE_BF16, "optimizer fp32_groups_flat_partition bf16_partitioned_groups"),
            (
                _STAGE_3,
                "optimizer fp32_partitioned_groups_flat fp16_groups grad_position get_param_id "
                "_reassign_or_swap_out_partitioned_parameters checkpoint_event_prologue checkpoint_event_epilogue",
            ),
        )
    ],
    *[
        Upstream(module, _of(owner, names), "parallel/dropped_gradients.py", f"skipping an update under ZeRO {stages}")
        for (module, owner, stages), names in (
            (
                _STAGE_12,
                "single_partition_of_fp32_groups micro_step_id zero_grad cpu_offload "
                "reset_cpu_buffers averaged_gradients",
            ),
            (
                _STAGE_3,
                "fp32_partitioned_groups_flat _pre_step _partition_all_parameters _overflow_clean_up loss_scale",
            ),
        )
    ],
    Upstream(_STAGE_12[0], "INITIAL_MICRO_STEP_ID", "parallel/dropped_gradients.py", "skipping an update"),
    Upstream(
        "deepspeed.utils.mixed_precision_linkage",
        "link_hp_params",
        _PIECES,
        "which part of a parameter lies where in its master under ZeRO 1 and 2",
        mentions="_hp_mapping",
    ),
    Upstream(
        "deepspeed.utils.tensor_fragment",
        "tensor_fragment",
        _PIECES,
        "which part of a parameter lies where in its master under ZeRO 1 and 2",
        parameters="lp_fragment_address hp_fragment_address param_group_index",
    ),
    Upstream(
        "deepspeed.runtime.fp16.loss_scaler",
        _of("DynamicLossScaler", "cur_scale cur_iter last_overflow_iter cur_hysteresis"),
        _PIECES,
        "the loss scale of a checkpoint",
    ),
    Upstream(
        "deepspeed.runtime.constants",
        "PIPE_REPLICATED",
        "model/gpt.py",
        "counting the tied table once in the norm of the gradient",
        value="ds_pipe_replicated",
    ),
    Upstream(
        "deepspeed.runtime.utils",
        "is_model_parallel_parameter",
        "model/gpt.py",
        "telling slices from copies in the norm of the gradient",
        mentions="tensor_model_parallel",
    ),
    Upstream("deepspeed", "zero.GatheredParameters", _ENGINE, "whole weights under ZeRO 3"),
    Upstream(
        _PARTITION,
        "Init",
        "parallel/replicas.py",
        "comparing what ranks keep under ZeRO 3",
        mentions="ds_tensor ds_numel status",
    ),
    Upstream(
        _PARTITION,
        "PartitionedParamStatus.AVAILABLE",
        "parallel/replicas.py",
        "telling whether a part is in memory or in a file",
    ),
    *[
        Upstream("deepspeed.runtime.constants", name, _JSON, "a key of its JSON", value=name.lower())
        for name in _JSON_KEYS.split()
    ],
    Upstream(
        _ZERO_CONFIG,
        "DeepSpeedZeroConfig",
        _JSON,
        "ZeRO as the plan has it",
        parameters="stage overlap_comm contiguous_gradients reduce_scatter round_robin_gradients offload_optimizer "
        "offload_param stage3_max_live_parameters stage3_max_reuse_distance stage3_param_persistence_threshold "
        "stage3_prefetch_bucket_size allgather_bucket_size reduce_bucket_size",
    ),
    Upstream(_OFFLOAD, "DeepSpeedZeroOffloadOptimizerConfig", _JSON, "offloading", parameters="device pin_memory"),
    Upstream(
        _OFFLOAD,
        "DeepSpeedZeroOffloadParamConfig",
        _JSON,
        "offloading",
        parameters="device pin_memory nvme_path max_in_cpu",
    ),
    Upstream(
        _PRECISION, "DeepSpeedBF16Config", _JSON, "bf16", parameters="enabled immediate_grad_update check_grad_overflow"
    ),
    Upstream(
        _PRECISION,
        "DeepSpeedFP16Config",
        _JSON,
        "fp16",
        parameters="enabled loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis "
        "min_loss_scale",
    ),
    Upstream("deepspeed.comm.torch", "build_shm_op", _CPU, "starting on the CPU without compiling anything"),
    Upstream("deepspeed.accelerator", "get_accelerator", _CPU, "running fp16 on the CPU"),
    Upstream(
        "deepspeed.accelerator.cpu_accelerator",
        "CPU_Accelerator.is_fp16_supported",
        _CPU,
        "running fp16 on the CPU",
    ),
    Upstream(
        "deepspeed.ops.op_builder",
        "AsyncIOBuilder.is_compatible",
        "training/run_folder.py",
        "asking whether parameters can be written to files",
        parameters="verbose",
    ),
    Upstream(
        _STAGE_12[0],
        _of("DeepSpeedZeroOptimizer", "bit16_groups bit16_groups_flat parallel_partitioned_bit16_groups"),
        _SHARDS,
        "checking that shards cover the parameters",
    ),
    Upstream(
        _STAGE_BF16[0],
        _of("BF16_Optimizer", "bf16_groups bf16_groups_flat bf16_partitioned_groups"),
        _SHARDS,
        "checking that shards cover the parameters",
    ),
    *[
        Upstream(module, "", _WORLD, "putting its groups back as they were after a rehearsal")
        for module in ("deepspeed.comm.comm", "deepspeed.utils.groups", _PARTITION)
    ],
    Upstream(
        "deepspeed.runtime.zero.partitioned_param_coordinator",
        "assert_ints_same_as_other_ranks",
        _WORLD,
        "rehearsing ZeRO 3 beside ranks that are made up",
    ),
]

UPSTREAM: tuple[Upstream, ...] = (*_MEGATRON, *_DEEPSPEED)
