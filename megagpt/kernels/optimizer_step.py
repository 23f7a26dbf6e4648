"""What happens to a bfloat16 model's gradients: added up in float32, then AdamW on float32 masters, weights rounded.

On the CPU each is one pass over memory (megagpt/native/optimizer.cpp); else torch's kernels. Loshchilov & Hutter 2019.
Works on flat tensors; knows nothing of parameters, ranks or ZeRO.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

try:
    from megagpt.native import _optimizer
except ImportError:  # no compiler when it was installed
    _optimizer = None  # type: ignore[assignment]


class AdamWStep(NamedTuple):
    """The numbers of one update."""

    number: int  # from 1
    lr: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


def reference_adamw(
    master: Tensor, gradient: Tensor, first_moment: Tensor, second_moment: Tensor, step: AdamWStep, scale: float
) -> None:
    """Algorithm 2 of the paper, in place; the gradient counts `scale` times."""
    gradient = gradient * scale
    first_moment.mul_(step.beta1).add_((1 - step.beta1) * gradient)
    second_moment.mul_(step.beta2).add_((1 - step.beta2) * gradient**2)
    corrected = first_moment / (1 - step.beta1**step.number)
    root = (second_moment / (1 - step.beta2**step.number)).sqrt()
    master.mul_(1 - step.lr * step.weight_decay).sub_(step.lr * corrected / (root + step.epsilon))


@torch.no_grad()
def add_gradient(total: Tensor, gradient: Tensor, is_first: bool) -> None:
    """total += gradient, or total = gradient where it `is_first`.

    total [n] float32, gradient [n] of any float dtype, on one device.
    """
    if _runs_native(total, gradient):
        gradient = gradient.contiguous()
        _optimizer.add_gradient(total.data_ptr(), gradient.data_ptr(), total.numel(), is_first, torch.get_num_threads())
    elif is_first:
        total.copy_(gradient)
    else:
        total.add_(gradient)


@torch.no_grad()
def update_masters(
    master: Tensor,
    weight: Tensor,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    step: AdamWStep,
    scale: float,
) -> None:
    """AdamW in place on masters and moments [n] float32; `weight` [n] becomes the masters in its own dtype.

    The gradient [n] float32 counts `scale` times: what averages and clips it.
    """
    if _runs_native(master, weight):
        assert all(t.is_contiguous() for t in (master, weight, gradient, first_moment, second_moment))
        _optimizer.adamw_step(
            master.data_ptr(),
            weight.data_ptr(),
            gradient.data_ptr(),
            first_moment.data_ptr(),
            second_moment.data_ptr(),
            master.numel(),
            torch.get_num_threads(),
            step.lr,
            step.beta1,
            step.beta2,
            step.epsilon,
            step.weight_decay,
            scale,
            1 - step.beta1**step.number,
            math.sqrt(1 - step.beta2**step.number),
        )
        return
    torch._fused_adamw_(
        [master],
        [gradient],
        [first_moment],
        [second_moment],
        [],
        [torch.full((), float(step.number), device=master.device)],
        lr=step.lr,
        beta1=step.beta1,
        beta2=step.beta2,
        weight_decay=step.weight_decay,
        eps=step.epsilon,
        amsgrad=False,
        maximize=False,
        grad_scale=torch.full((), 1 / scale, device=master.device),
    )
    weight.copy_(master)


def _runs_native(wide: Tensor, narrow: Tensor) -> bool:
    on_cpu = wide.device.type == "cpu" and type(wide) is type(narrow) is Tensor  # not a fake one
    return _optimizer is not None and on_cpu and wide.dtype == torch.float32 and narrow.dtype == torch.bfloat16
