"""The feed-forward layer on megatron-core's parallel linears: its width is cut over tensor ranks."""

from torch import Tensor, nn

from megagpt.kernels.gelu import gelu
from megagpt.model.context import StageBuild
from megagpt.model.linear import column_linear, row_linear


class MLP(nn.Module):
    """Up-projection, GELU, down-projection."""

    def __init__(self, build: StageBuild) -> None:
        super().__init__()
        spec = build.spec
        self.activation = spec.activation
        self.up = column_linear(build, spec.hidden_size, spec.ffn_hidden_size)
        self.down = row_linear(build, spec.ffn_hidden_size, spec.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[S, B, H] to [S, B, H]. Reduces over the tensor group."""
        wide, _ = self.up(hidden)
        output, _ = self.down(gelu(wide, self.activation))
        return output
