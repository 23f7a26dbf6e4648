"""Where megatron-core and DeepSpeed meet: one optimizer step over any layout.

megatron-core runs the micro-batches, DeepSpeed owns the data-parallel reduction, ZeRO, clipping and the update. The
order of a step is fixed: micro-batches → norm gradients over the tensor group → tied embedding over the two ends of
the pipeline → check that all is finite → data-parallel reduction → clip and update.
"""

import contextlib
import io
import logging
import math
import os
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megagpt.checkpoint.manifest import OptimizerProgress
from megagpt.checkpoint.pieces import Piece
from megagpt.data.batch import Batch
from megagpt.parallel import optimizer_pieces as pieces
from megagpt.parallel.bf16_update import Bf16Update
from megagpt.parallel.cpu import patch_deepspeed_for_cpu
from megagpt.parallel.dropped_gradients import drop_gradients
from megagpt.parallel.mcore_config import McoreConfig
from megagpt.parallel.mesh import DeepSpeedMesh, Mesh
from megagpt.parallel.schedule import ScheduleChunk, TokenLoss, make_chunks, run_schedule
from megagpt.parallel.trace import StepTracer


class UpdateResult(NamedTuple):
    """What one optimizer step did."""

    grad_norm: float  # global norm before clipping; not finite where the update was left out
    lr: float
    applied: bool  # False: the update was left out; in fp16 an overflow has lowered the loss scale instead
    loss_scale: float  # 1 unless fp16


class StageModule(nn.Module):
    """The chunks of one rank as the single module DeepSpeed asks for."""

    def __init__(self, chunks: list[nn.Module]) -> None:
        super().__init__()
        self.chunks = nn.ModuleList(chunks)

    def forward(self, number: int, batch: Batch, hidden: Tensor | None, dropout_seed: int | None) -> Tensor:
        """Run one chunk."""
        return self.chunks[number](batch, hidden, dropout_seed)


def global_named_parameters(chunks: nn.ModuleList) -> dict[str, nn.Parameter]:
    """Parameters of a rank's chunks by their global names."""
    named: dict[str, nn.Parameter] = {}
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            assert name not in named, f"two chunks of one rank hold {name}"
            named[name] = parameter
    return named


class Engine:
    """The model of one rank with its optimizer. Every rank of the mesh builds one and calls its methods together."""

    def __init__(
        self,
        chunks: list[nn.Module],
        mesh: Mesh,
        mcore: McoreConfig,
        deepspeed_config: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        clip_grad: float,
    ) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.mesh = mesh
        self._replica = DeepSpeedMesh(mesh)
        self.zero_stage = int(deepspeed_config["zero_optimization"]["stage"])
        self._fp16 = "fp16" in deepspeed_config
        self._clip_grad = clip_grad
        patch_deepspeed_for_cpu()
        import deepspeed  # after the patch; slow, and not needed for inference

        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it (engine.py:1972), also without a launcher
        with contextlib.redirect_stdout(io.StringIO()):  # it prints memory tables at every start
            deepspeed.init_distributed(dist_init_required=False, verbose=False)
            self.deepspeed, *_ = deepspeed.initialize(
                model=StageModule(chunks),
                optimizer=optimizer,
                config=deepspeed_config,
                mpu=self._replica,
                dist_init_required=False,
            )
        self.optimizer = self.deepspeed.optimizer
        # ZeRO 0 and 1: ours to call, once, after the sums over tensor and embedding groups. ZeRO 2 and 3 shard
        # gradients inside the backward pass: the plan refuses pipelines there, and norm gradients are summed by a hook
        self._reduces_in_backward = self.zero_stage >= 2
        self.deepspeed.enable_backward_allreduce = self._reduces_in_backward
        self._forwards_left = 0
        self.module: StageModule = self.deepspeed.module
        self.named_parameters = global_named_parameters(self.module.chunks)
        is_bf16 = hasattr(self.optimizer, "bf16_groups")  # BF16_Optimizer: bf16 with ZeRO 1
        fused = [m.weight for m in self.module.modules() if getattr(m, "gradient_accumulation_fusion", False)]
        self._bf16 = Bf16Update(self.optimizer, mesh, clip_grad, fused) if is_bf16 else None
        if self._reduces_in_backward:
            self._sum_over_tensor_ranks_in_backward()
        mcore.grad_scale_func = self._scale_loss if self._fp16 else None
        self._chunks: list[ScheduleChunk] = make_chunks(len(chunks), self._forward_chunk, mcore)

    def forward_backward(
        self,
        micro_batches: list[Batch],
        loss_weight: Tensor | float,
        dropout_seed: int | None,
        tracer: StepTracer | None = None,
    ) -> list[TokenLoss]:
        """Accumulate the gradients of one step's micro-batches. Sends and receives over the pipeline group."""
        self.module.train()
        self.deepspeed.set_gradient_accumulation_boundary(False)
        self._forwards_left = len(micro_batches)
        return run_schedule(self._chunks, self.mesh, micro_batches, loss_weight, dropout_seed, False, tracer)

    def evaluate(self, micro_batches: list[Batch]) -> list[TokenLoss]:
        """Losses without dropout or gradients. Sends and receives over the pipeline group."""
        self.module.eval()
        return run_schedule(self._chunks, self.mesh, micro_batches, 1.0, None, forward_only=True)

    def reduce_model_parallel_gradients(self) -> None:
        """Sum what tensor and pipeline ranks each saw a part of: over the tensor and the embedding group.

        ZeRO 2 and 3 have done it by then, in the backward pass (`_sum_over_tensor_ranks_in_backward`).
        """
        if self._reduces_in_backward:
            return
        if self._bf16 is not None:
            self._bf16.finish_accumulation()
        if self.mesh.tensor_size > 1:
            for parameter in self.named_parameters.values():
                if parameter.sequence_parallel:  # type: ignore[attr-defined]
                    dist.all_reduce(self.gradient(parameter), group=self.mesh.tensor_group)
        if self.mesh.embedding_group is not None:
            table = self.named_parameters["embedding.tokens.weight"]
            dist.all_reduce(self.gradient(table), group=self.mesh.embedding_group)

    def local_gradients_finite(self) -> Tensor:
        """Whether every gradient this rank holds is finite, [] bool on the device: the host does not wait for it.

        In fp16 always true: overflow there lowers the loss scale. One pass over the gradients: the sum of squares is
        not finite if any element is not.
        """
        held = [] if self._fp16 else self._held_gradients()
        if not held:
            return torch.ones((), dtype=torch.bool, device=self.mesh.device)
        return torch.stack([norm.float() for norm in torch._foreach_norm(held)]).isfinite().all()

    def update(self, lr: float) -> UpdateResult:
        """Reduce over the data group, clip by the global norm and update the weights.

        The update is left out where that norm is not finite. The same on every rank.
        """
        if self._bf16 is not None:
            bf16_norm = self._bf16.update(lr)
            self._broadcast_tied_table()
            return UpdateResult(bf16_norm, lr, math.isfinite(bf16_norm), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.deepspeed.set_gradient_accumulation_boundary(True)
        loss_scale = self._loss_scale()
        if not self._reduces_in_backward:
            self.deepspeed.allreduce_gradients()
        norm = self._clip_unpartitioned() if self.zero_stage == 0 else None
        if norm is not None and not math.isfinite(norm):  # DeepSpeed's other optimizers look for themselves
            return self.skip_update(lr)
        self.deepspeed.step()
        self._broadcast_tied_table()
        if norm is None:
            norm = float(self.deepspeed.get_global_grad_norm())
        return UpdateResult(norm, lr, bool(self.deepspeed.was_step_applied()), loss_scale)

    def skip_update(self, lr: float) -> UpdateResult:
        """Leave this step's update out: its gradients are forgotten, nothing else changes. Every rank calls it."""
        if self._bf16 is not None:
            self._bf16.forget()
        else:
            drop_gradients(self.optimizer, self.named_parameters.values())
        return UpdateResult(math.nan, lr, False, self._loss_scale())

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        """The accumulated gradient of a parameter where DeepSpeed keeps it; ZeRO 2 and 3 keep only shards.

        bf16: float32 views of BF16_Optimizer's buffers (bf16_update.py); fp16: `grad_accum`
        (stage_1_and_2.py, use_grad_accum_attribute); fp32: `grad`.
        """
        assert self.zero_stage < 2, "ZeRO 2 and 3 keep no whole gradients"
        if self._bf16 is not None:
            return self._bf16.gradients[parameter]
        accumulated = getattr(parameter, "grad_accum", None)
        gradient = parameter.grad if accumulated is None else accumulated
        assert gradient is not None, "a parameter took no part in the backward pass"
        return gradient

    def model_state(self) -> dict[str, Tensor]:
        """This rank's weights by global name, on the CPU. ZeRO 3 gathers over the data group: every rank calls it."""
        if self.zero_stage < 3:
            return {name: parameter.detach().cpu() for name, parameter in self.named_parameters.items()}
        import deepspeed

        state = {}
        for name, parameter in self.named_parameters.items():
            with deepspeed.zero.GatheredParameters([parameter]):
                state[name] = parameter.detach().cpu().clone()
        return state

    def held_pieces(self) -> list[Piece]:
        """Views of this rank's part of masters and moments, for a checkpoint to fill."""
        return pieces.held_pieces(self.optimizer, self.named_parameters, self.mesh)

    def owned_pieces(self) -> list[Piece]:
        """Views of what this rank saves of masters and moments: over all ranks, each element once."""
        return pieces.owned_pieces(self.optimizer, self.named_parameters, self.mesh)

    def progress(self) -> OptimizerProgress:
        """The optimizer's state beside its pieces; the same on every rank."""
        scale = pieces.loss_scale_of(self.optimizer) if self._fp16 else None
        return OptimizerProgress(pieces.num_updates(self.optimizer), scale)

    def continue_from(self, progress: OptimizerProgress) -> None:
        """Go on once every rank's `held_pieces` are filled. Gathers weights over the gradient group."""
        pieces.set_num_updates(self.optimizer, progress.updates)
        if self._bf16 is not None:
            self._bf16.num_updates = progress.updates
        if progress.loss_scale is not None:
            pieces.set_loss_scale(self.optimizer, progress.loss_scale)
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints
            pieces.gather_weights(self.optimizer, self.mesh)

    def _broadcast_tied_table(self) -> None:
        """Send the first stage's token table to the last, which has a copy of it. Broadcasts over the embedding group.

        Both ends updated it with the same gradient but for the order in which data ranks were summed, which depends on
        its place in DeepSpeed's buffers: from three data ranks on, the copies would drift apart by roundings.
        """
        group = self.mesh.embedding_group
        if group is not None:
            table = self.named_parameters["embedding.tokens.weight"].data
            dist.broadcast(table, src=dist.get_process_group_ranks(group)[0], group=group)

    def _sum_over_tensor_ranks_in_backward(self) -> None:
        """Sum each norm's gradient over the tensor group as it appears, before DeepSpeed's own hook shards it.

        A hook on a leaf runs before its gradient is accumulated, in the same order on every tensor rank. The sum is
        in float32 whatever the gradient's format.
        """

        def reduce_gradient(gradient: Tensor) -> Tensor:
            total = gradient.float()
            dist.all_reduce(total, group=self.mesh.tensor_group)
            return total.to(gradient.dtype)

        for parameter in self.named_parameters.values():
            if self.mesh.tensor_size > 1 and parameter.sequence_parallel:  # type: ignore[attr-defined]
                parameter.register_hook(reduce_gradient)

    def _clip_unpartitioned(self) -> float:
        """Clip whole gradients by their global norm and return it; reduces over one replica of the model.

        DeepSpeed's own clipping without ZeRO counts the tied table twice when the pipeline has two ends
        (runtime/utils.py, clip_grad_norm_).
        """
        counted = []
        for parameter in self.named_parameters.values():
            is_copy = not parameter.tensor_model_parallel and self.mesh.tensor_rank > 0  # type: ignore[attr-defined]
            if not is_copy and not getattr(parameter, "ds_pipe_replicated", False):
                counted.append(self.gradient(parameter))
        total = torch.stack(torch._foreach_norm(counted)).square().sum()
        dist.all_reduce(total, group=self._replica.get_model_parallel_group())
        norm = float(total.sqrt())
        if 0 < self._clip_grad < norm:
            torch._foreach_mul_([self.gradient(p) for p in self.named_parameters.values()], self._clip_grad / norm)
        return norm

    def _held_gradients(self) -> list[Tensor]:
        """All that this rank holds of gradients; of those that were moved to host memory, the norms taken before."""
        if self.zero_stage < 2:
            return [self.gradient(parameter) for parameter in self.named_parameters.values()]
        offloaded = getattr(self.optimizer, "norm_for_param_grads", None)
        if offloaded:
            return list(offloaded.values())
        return [g for shards in self.optimizer.averaged_gradients.values() for g in shards if g is not None]

    def _forward_chunk(self, number: int, batch: Batch, hidden: Tensor | None, dropout_seed: int | None) -> Tensor:
        # DeepSpeed refuses a backward pass driven from outside for ZeRO 0 if its own forward made the graph
        # (engine.py, _support_torch_style_backward): there, nothing of it is needed before the reduction
        run = self.deepspeed if self.zero_stage > 0 else self.module
        if self._reduces_in_backward and self.module.training:
            self._forwards_left -= 1
            self.deepspeed.set_gradient_accumulation_boundary(self._forwards_left == 0)
        output = run(number, batch, hidden, dropout_seed)
        if self._fp16:
            # only the last stage scales the loss; the others receive gradients that are scaled already
            self.deepspeed._manual_backward_expected = True
        return output

    def _scale_loss(self, loss: Tensor) -> Tensor:
        return self.deepspeed.scale(loss)

    def _loss_scale(self) -> float:
        return float(self.optimizer.loss_scale) if self._fp16 else 1.0
