"""The two collectives on whole tensors that kernels use, by the names that this version of torch has for them.

torch 2.13 renamed `all_gather_into_tensor` and `reduce_scatter_tensor`, and warns of the old names.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_tensor(part: Tensor, group: ProcessGroup) -> Tensor:
    """Parts [n, ...] of every rank of the group, in the order of ranks: [ranks n, ...]."""
    whole = part.new_empty((group.size() * part.shape[0], *part.shape[1:]))
    _all_gather(whole, part.contiguous(), group=group)
    return whole


def reduce_scatter_tensor(whole: Tensor, group: ProcessGroup) -> tuple[Tensor, Any]:
    """This rank's part [n / ranks, ...] of the sum over the group of `whole` [n, ...], once the work is done."""
    part = whole.new_empty((whole.shape[0] // group.size(), *whole.shape[1:]))
    return part, _reduce_scatter(part, whole, group=group, async_op=True)
