"""DeepSpeed's configuration, generated from our numbers; nothing that matters is left to its defaults."""

from typing import Any

from megagpt.config import ParallelSection, TrainSection

# DeepSpeed measures the global gradient norm only where it clips; this bound never clips
NO_CLIPPING = 1e30

# gradients that are reduced at a time: 400 MB in fp32, of which ZeRO 2 and 3 hold copies beside the activations
REDUCE_BUCKET_VALUES = 10**8
# parameters that ZeRO 3 holds gathered, so that a layer is not gathered again at once
MAX_LIVE_VALUES = 10**9


def make_deepspeed_config(train: TrainSection, parallel: ParallelSection) -> dict[str, Any]:
    """The dict that `deepspeed.initialize` takes as its JSON.

    Batch sizes are 1: megatron-core's schedule runs the micro-batches and our loss is already divided, so DeepSpeed
    must neither count nor divide (its train_batch_size would follow the data-parallel size).
    """
    clip = train.clip_grad if train.clip_grad > 0 else NO_CLIPPING
    partitioned = parallel.zero_stage > 0
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip
        if partitioned
        else 0.0,  # without ZeRO the engine clips (engine.py, _clip_unpartitioned)
        "prescale_gradients": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": parallel.zero_stage,
            # overlapping would reduce inside the backward hooks, before our sums over tensor and embedding groups
            "overlap_comm": False,
            "contiguous_gradients": False,
            "reduce_scatter": True,
            "round_robin_gradients": False,
            "reduce_bucket_size": REDUCE_BUCKET_VALUES,
            "allgather_bucket_size": REDUCE_BUCKET_VALUES,
        },
    }
    if parallel.zero_stage == 3:
        config["zero_optimization"] |= {
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 100_000,  # smaller ones, biases and norms, are not cut
            "stage3_max_live_parameters": MAX_LIVE_VALUES,
            "stage3_max_reuse_distance": MAX_LIVE_VALUES,
        }
    config["zero_optimization"] |= _offloading(parallel)
    if train.precision == "bf16":
        # ZeRO 1: gradients are added up and the update is made by bf16_update.py; ZeRO 2 and 3 refuse one not finite
        config["bf16"] = {
            "enabled": True,
            "immediate_grad_update": parallel.zero_stage != 1,
            "check_grad_overflow": True,
        }
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif train.precision == "fp16":
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": train.fp16_initial_scale_power,
            "loss_scale_window": train.fp16_scale_window_steps,
            "hysteresis": 2,
            "consecutive_hysteresis": False,
            "min_loss_scale": 1,
        }
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _offloading(parallel: ParallelSection) -> dict[str, Any]:
    """The parts of `zero_optimization` that move state out of GPU memory; pinned, so that copies run beside work."""
    parts: dict[str, Any] = {}
    if parallel.offload_optimizer != "none":
        parts["offload_optimizer"] = {"device": parallel.offload_optimizer, "pin_memory": True}
    if parallel.offload_parameters != "none":
        parts["offload_param"] = {"device": parallel.offload_parameters, "pin_memory": True}
        if parallel.offload_parameters == "nvme":
            # the defaults keep the first 10^9 parameters of a rank in host memory, and as many gathered in GPU memory,
            # each of which holds one of the five buffers that files are read into
            parts["offload_param"] |= {"nvme_path": parallel.nvme_folder, "max_in_cpu": 0}
            parts |= {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
    return parts
