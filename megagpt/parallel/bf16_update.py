"""A step's gradients and update for bf16 with ZeRO 1, on the buffers that DeepSpeed's BF16_Optimizer has made.

    gradients   float32, of the whole model on every rank; each micro-batch's are added as they appear
    masters     float32, of this rank's part, with AdamW's two moments
    weights     bfloat16, of the whole model

The optimizer's own step sums whole gradients over the ranks, by way of copies, and goes over them six times. This one
sums each rank's part alone (reduce-scatter) and goes over it twice: for the norm, and for clipping, update and the
new weights at once. Checkpoints read and write the same buffers (optimizer_pieces.py).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megagpt.kernels.optimizer_step import AdamWStep, add_gradient, update_masters
from megagpt.parallel.mesh import Mesh
from megagpt.parallel.optimizer_pieces import adam_state

# torch 2.13 gives the two collectives other names; the old ones warn there
_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class _Group(NamedTuple):
    """The buffers of one of the optimizer's groups of parameters."""

    gradient: Tensor  # [n] float32
    own_gradient: Tensor  # [n / gradient ranks], a view
    counted: list[Tensor]  # views of what this rank counts in the global norm, a parameter each
    master: Tensor  # [n / gradient ranks] float32
    weight: Tensor  # [n] bfloat16
    own_weight: Tensor  # [n / gradient ranks], a view
    adam: dict[str, Any]  # the group of torch's optimizer: lr, betas, eps, weight_decay


class Bf16Update:
    """One of a rank's Engine. It takes each parameter's gradient as soon as the backward pass has it."""

    def __init__(self, optimizer: Any, mesh: Mesh, clip_grad: float, fused: Iterable[nn.Parameter] = ()) -> None:
        """`optimizer`: a BF16_Optimizer that does not add up gradients itself (immediate_grad_update false).

        `clip_grad`: largest global norm; 0: none. `fused`: weights whose layers add their gradients to `main_grad`
        themselves (megatron-core's gradient_accumulation_fusion).
        """
        self._optimizer, self._mesh, self._clip_grad = optimizer, mesh, clip_grad
        self._groups = [self._group(number) for number in range(len(optimizer.bf16_groups))]
        self.gradients: dict[nn.Parameter, Tensor] = {}  # where each parameter's gradient is added up
        for parameters, views in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True):
            for parameter, view in zip(parameters, views, strict=True):
                self.gradients[parameter] = view
        self._fused = frozenset(fused)
        for parameter in self.gradients.keys() - self._fused:
            parameter.register_post_accumulate_grad_hook(self._take)
        for parameter in self._fused:
            parameter.main_grad = self.gradients[parameter].view(parameter.shape)  # type: ignore[attr-defined]
        self._taken = set(self._fused)  # those whose sum is of this step
        self.num_updates = 0  # AdamW's step count, on the host: reading it from the device would wait for it

    def finish_accumulation(self) -> None:
        """The step's last micro-batch is over: gradients of parameters that took no part are zero."""
        for parameter, gradient in self.gradients.items():
            if parameter not in self._taken:
                gradient.zero_()

    def forget(self) -> None:
        """Leave the step's gradients out: the next one begins anew."""
        for parameter in self._fused:
            self.gradients[parameter].zero_()
        self._taken = set(self._fused)

    def update(self, lr: float) -> float:
        """Average over the gradient group, clip, update, gather. Returns the global norm of the averaged gradients.

        Where that is not finite nothing is updated. Every rank calls it; all reduce over the world too.
        """
        mesh, size = self._mesh, self._mesh.gradient_size
        if size > 1:
            for group in self._groups:
                _reduce_scatter(group.own_gradient, group.gradient, group=mesh.gradient_group)
        norm = self._norm() / size
        if not math.isfinite(norm):
            self.forget()
            return norm
        clips = 0 < self._clip_grad < norm
        scale = (self._clip_grad / (norm + 1e-6) if clips else 1.0) / size  # as torch's clip_grad_norm_
        self.num_updates += 1
        for group in self._groups:
            self._update_group(group, lr, scale)
            if size > 1:
                _all_gather(group.weight, group.own_weight, group=mesh.gradient_group)
        self.forget()
        return norm

    def _take(self, parameter: nn.Parameter) -> None:
        """Move a new gradient to where gradients are added up."""
        gradient = parameter.grad
        assert gradient is not None, "a hook ran without its gradient"
        add_gradient(self.gradients[parameter], gradient.view(-1), is_first=parameter not in self._taken)
        self._taken.add(parameter)
        parameter.grad = None

    def _norm(self) -> float:
        """Of the gradients summed over the gradient group: each element of each parameter counts once in the world."""
        counted = [view for group in self._groups for view in group.counted]
        norms = torch._foreach_norm(counted) if counted else [torch.zeros((), device=self._mesh.device)]
        total = torch.stack(norms).double().square().sum()
        if self._mesh.world_size > 1:
            dist.all_reduce(total)
        return math.sqrt(float(total))

    def _update_group(self, group: _Group, lr: float, scale: float) -> None:
        state, adam = adam_state(self._optimizer, group.master), group.adam
        state["step"] += 1
        beta1, beta2 = adam["betas"]
        step = AdamWStep(self.num_updates, lr, beta1, beta2, adam["eps"], adam["weight_decay"])
        moments = state["exp_avg"], state["exp_avg_sq"]
        update_masters(group.master.detach(), group.own_weight, group.own_gradient, *moments, step, scale)

    def _group(self, number: int) -> _Group:
        optimizer, mesh = self._optimizer, self._mesh
        gradient, own = (
            optimizer.fp32_groups_gradients_flat[number],
            optimizer.fp32_groups_gradient_flat_partition[number],
        )
        first = mesh.gradient_rank * own.numel()
        counted, offset = [], 0
        for parameter in optimizer.bf16_groups[number]:
            start, stop = max(offset - first, 0), min(offset + parameter.numel() - first, own.numel())
            offset += parameter.numel()
            is_copy = not parameter.tensor_model_parallel and mesh.tensor_rank > 0
            if start < stop and not is_copy and not getattr(parameter, "ds_pipe_replicated", False):
                counted.append(own[start:stop])
        return _Group(
            gradient,
            own,
            counted,
            optimizer.fp32_groups_flat_partition[number],
            optimizer.bf16_groups_flat[number].detach(),
            optimizer.bf16_partitioned_groups[number][mesh.gradient_rank].detach(),
            optimizer.optimizer.param_groups[number],
        )
