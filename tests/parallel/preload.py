"""Imported once by the fork server: everything a rank needs that is slow to import and starts no threads."""

import deepspeed.runtime.bf16_optimizer
import deepspeed.runtime.engine
import deepspeed.runtime.zero.stage3
import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401
import megatron.core.pipeline_parallel.schedules
import megatron.core.tensor_parallel.layers  # noqa: F401
