"""The feed-forward layer on megatron-core's parallel linears: its width is cut over tensor ranks."""

from torch import Tensor, nn

from megagpt.kernels.bias_gelu import bias_gelu
from megagpt.model.context import StageBuild
from megagpt.model.linear import column_linear, row_linear


class MLP(nn.Module):
    """Up-projection, GELU, down-projection."""

    def __init__(self, build: StageBuild) -> None:
        super().__init__()
        spec = build.spec
        self.activation, self.compiles = spec.activation, build.compiles
        self.up = column_linear(build, spec.hidden_size, spec.ffn_hidden_size, skip_bias_add=True)
        self.down = row_linear(build, spec.ffn_hidden_size, spec.hidden_size)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[S, B, H] to [S, B, H] and the bias [H] that is still to be added. Reduces over the tensor group."""
        wide, bias = self.up(hidden)
        activated = bias_gelu(wide, bias, self.activation, self.compiles and self.training)
        output, output_bias = self.down(activated)
        return output, output_bias
