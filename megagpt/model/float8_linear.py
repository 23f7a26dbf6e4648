"""The two linears of tensor parallelism with their matrix products in float8 (`kernels/float8.py`).

megatron-core's own classes but for the product: parameters, names, bias and the sum over tensor ranks are theirs. What
its product does for tensor parallelism beside multiplying, summing or gathering on its way in and back, is done here by
its mappings, before the product: unlike there, the sum of the input's gradient does not run beside the weight's.
"""

from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from megagpt.kernels.float8 import float8_linear


class Float8ColumnLinear(ColumnParallelLinear):
    """Each tensor rank casts the same input, and its own rows of the weight with a scale of their own."""

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
        return float8_linear(input, weight, bias)


class Float8RowLinear(RowParallelLinear):
    """Each tensor rank casts its own columns of input and weight, with scales of their own."""

    def _forward_impl(self, input: Tensor, weight: Tensor, bias: Tensor | None, **_: Any) -> Tensor:
        """No communication: the sum over tensor ranks follows."""
        return float8_linear(input, weight, bias)
