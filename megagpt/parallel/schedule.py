"""One step's micro-batches through the pipeline: every one forward once and, in training, backward once.

megatron-core owns the schedules (none, 1F1B, interleaved 1F1B); this file hands it chunks in the form it asks for and
gives back one TokenLoss for each micro-batch on the last stage. It knows no optimizer: gradients stay where autograd
and the engine put them.
"""

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from megagpt.data.batch import Batch
from megagpt.kernels.dropout import mix
from megagpt.parallel.mcore_config import McoreConfig
from megagpt.parallel.mesh import Mesh
from megagpt.parallel.trace import StepTracer


class TokenLoss(NamedTuple):
    """Loss of one micro-batch, in nats summed over the tokens that count."""

    sum: Tensor  # [] float32
    num_tokens: Tensor  # [] int64


# (chunk number, micro-batch, hidden states or None, dropout seed or None) -> hidden states or the sum of losses
ForwardFunction = Callable[[int, Batch, Tensor | None, int | None], Tensor]


class ScheduleChunk(nn.Module):
    """One model chunk in the form that megatron-core's schedules expect (schedules.py: set_input_tensor, config …)."""

    def __init__(self, number: int, forward_chunk: ForwardFunction, config: McoreConfig) -> None:
        super().__init__()
        self.number, self.forward_chunk, self.config = number, forward_chunk, config
        self.model_type = ModelType.encoder_or_decoder
        self.vp_stage = number if config.virtual_pipeline_model_parallel_size else None
        self._hidden: Tensor | None = None

    def set_input_tensor(self, tensors: list[Tensor | None] | Tensor | None) -> None:
        """Called by the schedule with what arrived from the stage before (None on the first)."""
        self._hidden = tensors[0] if isinstance(tensors, list) else tensors

    def forward(self, batch: Batch, dropout_seed: int | None) -> Tensor:
        """Run the chunk on the hidden states set before."""
        return self.forward_chunk(self.number, batch, self._hidden, dropout_seed)


def run_schedule(
    chunks: list[ScheduleChunk],
    mesh: Mesh,
    micro_batches: list[Batch],
    loss_weight: Tensor | float,
    dropout_seed: int | None,
    forward_only: bool,
    tracer: StepTracer | None = None,
) -> list[TokenLoss]:
    """Run one step's micro-batches; every rank calls it. Sends and receives over the pipeline group.

    Each loss is multiplied by `loss_weight` before its backward pass. Micro-batch m uses a dropout seed derived from
    `dropout_seed` (one for this step and data rank) and m. `loss_weight` [] may be a tensor, which the host need not
    wait for. Returns one TokenLoss a micro-batch on the last stage,
    nothing on the others. `tracer` records the passes; with one, all ranks begin together.
    """

    def forward_step(numbered: Iterator[tuple[int, Batch]], chunk: ScheduleChunk) -> tuple[Tensor, Any]:
        number, batch = next(numbered)
        seed = None if dropout_seed is None else mix(dropout_seed, number)
        output = chunk(batch, seed)
        if tracer is not None:
            tracer.follow(chunk.number, number, output)
        return output, partial(_weigh_loss, batch.loss_mask, weight)

    micro_batches = [batch.to(mesh.device) for batch in micro_batches]
    weight = loss_weight.float() if isinstance(loss_weight, Tensor) else loss_weight
    sequences, length = micro_batches[0].tokens.shape
    if tracer is not None:
        chunks = _timed(chunks, tracer)
        tracer.start()
    with torch.set_grad_enabled(not forward_only):
        losses: list[TokenLoss] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(enumerate(micro_batches)) for _ in chunks],
            model=list(chunks),
            num_microbatches=len(micro_batches),
            seq_length=length * mesh.context_size,  # megatron-core divides it by the context ranks again
            micro_batch_size=sequences,
            forward_only=forward_only,
        )
    if tracer is not None:
        tracer.end()
    return losses


def make_chunks(num_chunks: int, forward_chunk: ForwardFunction, config: McoreConfig) -> list[ScheduleChunk]:
    """The chunks of this rank, one unless the schedule is interleaved."""
    return [ScheduleChunk(number, forward_chunk, config) for number in range(num_chunks)]


def _timed(chunks: list[ScheduleChunk], tracer: StepTracer) -> list[ScheduleChunk]:
    """The same chunks with a config of their own, through which the schedule tells the tracer of its passes."""
    config = copy(chunks[0].config)
    config.timers = tracer.timer
    return make_chunks(len(chunks), chunks[0].forward_chunk, config)


def _weigh_loss(loss_mask: Tensor, weight: Tensor | float, total: Tensor) -> tuple[Tensor, Tensor, TokenLoss]:
    """What megatron-core asks of a loss function: the value to differentiate, a token count, and what to report."""
    num_tokens = loss_mask.sum().to(torch.int64)
    return total * weight, num_tokens.to(torch.int32), TokenLoss(total.detach(), num_tokens)
