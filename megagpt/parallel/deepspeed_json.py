"""DeepSpeed's configuration, generated from our numbers; nothing that matters is left to its defaults."""

from typing import Any

# DeepSpeed measures the global gradient norm only where it clips; this bound never clips
NO_CLIPPING = 1e30


def make_deepspeed_config(
    precision: str,
    zero_stage: int,
    clip_grad: float,
    fp16_initial_scale_power: int,
    fp16_scale_window_steps: int,
) -> dict[str, Any]:
    """The dict that `deepspeed.initialize` takes as its JSON.

    Batch sizes are 1: megatron-core's schedule runs the micro-batches and our loss is already divided, so DeepSpeed
    must neither count nor divide (its train_batch_size would follow the data-parallel size).
    """
    clip = clip_grad if clip_grad > 0 else NO_CLIPPING
    partitioned = zero_stage > 0
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
            "stage": zero_stage,
            # overlapping would reduce inside the backward hooks, before our sums over tensor and embedding groups
            "overlap_comm": False,
            "contiguous_gradients": False,
            "reduce_scatter": True,
            "round_robin_gradients": False,
        },
    }
    if precision == "bf16":
        # accumulate each micro-batch into float32 as its gradient appears, and refuse an update that is not finite
        config["bf16"] = {"enabled": True, "immediate_grad_update": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif precision == "fp16":
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": fp16_initial_scale_power,
            "loss_scale_window": fp16_scale_window_steps,
            "hysteresis": 2,
            "consecutive_hysteresis": False,
            "min_loss_scale": 1,
        }
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
