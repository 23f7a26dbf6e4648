"""The two linears of tensor parallelism with a matrix product of ours in place of megatron-core's.

    Float8…   in float8 (kernels/float8.py), where the run asks for it
    Fast…     in float32 by another library (kernels/matmul.py), on CPUs where that is the faster one

megatron-core's own classes but for the product: parameters, names, bias and the sum over tensor ranks are theirs. What
its product does for tensor parallelism beside multiplying, summing or gathering on its way in and back, is done here by
its mappings, before the product: unlike there, the sum of the input's gradient does not run beside the weight's.
"""

from collections.abc import Callable
from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from megagpt.kernels.float8 import float8_linear
from megagpt.kernels.matmul import fast_linear

# values [..., K], weight [N, K], bias [N] or None -> [..., N]
Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class _OwnColumnLinear(ColumnParallelLinear):
    multiply: Multiply

    def _forward_impl(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: Any,
        **_: Any,
    ) -> Tensor:
        """Gathers the sequence, or sums the input's gradient, over the tensor group."""
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        return self.multiply(input, weight, bias)


class _OwnRowLinear(RowParallelLinear):
    multiply: Multiply

    def _forward_impl(self, input: Tensor, weight: Tensor, bias: Tensor | None, **_: Any) -> Tensor:
        """No communication: the sum over tensor ranks follows."""
        return self.multiply(input, weight, bias)


class Float8ColumnLinear(_OwnColumnLinear):
    """Each tensor rank casts the same input, and its own rows of the weight with a scale of their own."""

    multiply = staticmethod(float8_linear)


class Float8RowLinear(_OwnRowLinear):
    """Each tensor rank casts its own columns of input and weight, with scales of their own."""

    multiply = staticmethod(float8_linear)


class FastColumnLinear(_OwnColumnLinear):
    """The same numbers as megatron-core's but for the order of sums."""

    multiply = staticmethod(fast_linear)


class FastRowLinear(_OwnRowLinear):
    """The same numbers as megatron-core's but for the order of sums."""

    multiply = staticmethod(fast_linear)
