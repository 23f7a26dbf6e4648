"""The feed-forward layer on megatron-core's parallel linears: its width is cut over tensor ranks."""

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn

from megagpt.kernels.gelu import gelu
from megagpt.model.context import StageBuild, no_init


class MLP(nn.Module):
    """Up-projection, GELU, down-projection."""

    def __init__(self, build: StageBuild) -> None:
        super().__init__()
        spec = build.spec
        self.activation = spec.activation
        self.up = ColumnParallelLinear(
            spec.hidden_size,
            spec.ffn_hidden_size,
            config=build.mcore,
            init_method=no_init,
            tp_group=build.mesh.tensor_group,
        )
        self.down = RowParallelLinear(
            spec.ffn_hidden_size,
            spec.hidden_size,
            config=build.mcore,
            init_method=no_init,
            bias=True,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=build.mesh.tensor_group,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """[S, B, H] to [S, B, H]. Reduces over the tensor group."""
        wide, _ = self.up(hidden)
        output, _ = self.down(gelu(wide, self.activation))
        return output
