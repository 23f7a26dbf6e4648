"""The two linears of tensor parallelism, as megatron-core makes them, with the options that every layer here shares.

column   rows of the output are cut: each tensor rank computes its own; backward sums the input's gradient
row      columns of the input are cut: each tensor rank computes a summand; forward sums the output
"""

from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megagpt.kernels.matmul import takes_onednn
from megagpt.model.context import StageBuild, no_init
from megagpt.model.own_product import FastColumnLinear, FastRowLinear, Float8ColumnLinear, Float8RowLinear


def column_linear(build: StageBuild, inputs: int, outputs: int, skip_bias_add: bool = False) -> ColumnParallelLinear:
    """[S, B, inputs] to [S, B, outputs / t]; calling it gives (output, None).

    With `skip_bias_add` it gives (output without bias, bias) instead, for a kernel that adds the bias on its way.
    """
    return _kind(build, Float8ColumnLinear, FastColumnLinear, ColumnParallelLinear)(
        inputs,
        outputs,
        config=build.mcore,
        init_method=no_init,
        skip_bias_add=skip_bias_add,
        tp_group=build.mesh.tensor_group,
    )


def row_linear(build: StageBuild, inputs: int, outputs: int) -> RowParallelLinear:
    """[S, B, inputs / t] to [S, B, outputs], summed over the tensor group; calling it gives (output, bias).

    The bias is not added: whoever adds the output to the residual stream adds it too, in the same pass.
    """
    return _kind(build, Float8RowLinear, FastRowLinear, RowParallelLinear)(
        inputs,
        outputs,
        config=build.mcore,
        init_method=no_init,
        bias=True,
        input_is_parallel=True,
        skip_bias_add=True,
        tp_group=build.mesh.tensor_group,
    )


def _kind(build: StageBuild, float8: type, fast: type, megatron: type) -> Any:
    """Whose matrix product the linears of this run use."""
    if build.float8:
        return float8
    # megatron-core's product keeps a part of a gathered sequence for its backward pass, ours would keep all of it
    is_alone = build.mesh.tensor_size == 1
    return fast if is_alone and takes_onednn(build.mesh.device, build.mcore.params_dtype) else megatron
