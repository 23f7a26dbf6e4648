"""Forgetting a step's gradients wherever DeepSpeed keeps them, so that nothing of the step reaches the next one.

    optimizer                                  what it keeps of a step
    torch's own (ZeRO 0)                       `grad`
    DeepSpeedZeroOptimizer (ZeRO 1 and 2)      `grad` or `grad_accum`, the averaged parts, a flag of overflow
    DeepSpeedZeroOptimizer_Stage3 (ZeRO 3)     the averaged parts, norms of offloaded gradients

Each branch is what the optimizer's own `step` does where it finds an overflow (stage_1_and_2.py, step;
stage3.py, _overflow_clean_up), without its say on the loss scale. bf16 with ZeRO 1: bf16_update.py. No communication.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


def drop_gradients(optimizer: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Forget all gradients since the last update. Weights, moments, step count and loss scale stay. On every rank."""
    for parameter in parameters:
        parameter.grad = None
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer._pre_step()  # the next micro-batch is the first again: it overwrites the parts, others are added
        optimizer._partition_all_parameters()
        optimizer._overflow_clean_up(optimizer.loss_scale)
    elif hasattr(optimizer, "single_partition_of_fp32_groups"):
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID  # slow, but there is its optimizer

        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID  # likewise
        optimizer.zero_grad()
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None
