"""Imported once by the fork server: everything a rank needs that is slow to import and starts no threads."""

import gc

import deepspeed.module_inject.auto_ep_layer
import deepspeed.runtime.bf16_optimizer
import deepspeed.runtime.engine
import deepspeed.runtime.superoffload.superoffload_stage3
import deepspeed.runtime.zero.muon.muon_optimizer
import deepspeed.runtime.zero.stage3
import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401
import megatron.core.pipeline_parallel.schedules
import megatron.core.tensor_parallel.layers
import megatron.core.transformer.multi_token_prediction  # noqa: F401
import torch

torch.compiler.disable(lambda: None)()  # the first call of a function that is never compiled builds dynamo's tables

# What was imported stays: ZeRO 3 collects garbage as it starts, and every rank would look through (and so copy) all
# objects of these modules, a second of a rank's time
gc.collect()
gc.freeze()
