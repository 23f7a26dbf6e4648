"""One decoder layer: two residual lines, pre-LayerNorm as in GPT-2 and GPT-3 (Radford et al. 2019, §2.3)."""

from torch import Tensor, nn

from megagpt.kernels.dropout import mix
from megagpt.kernels.layer_norm import LayerNorm
from megagpt.kernels.residual_norm import Branch, ResidualNorm, add_branch
from megagpt.model.attention import SelfAttention
from megagpt.model.context import LayerCache, LayerContext, StageBuild
from megagpt.model.mlp import MLP


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream after."""

    def __init__(self, build: StageBuild) -> None:
        super().__init__()
        spec, dtype, device = build.spec, build.mcore.params_dtype, build.mesh.device
        self.build = build
        self.attention_norm = LayerNorm(spec.hidden_size, spec.layer_norm_epsilon, dtype, device)
        self.attention = SelfAttention(build)
        self.mlp_norm = ResidualNorm(spec.hidden_size, spec.layer_norm_epsilon, dtype, device)
        self.mlp = MLP(build)

    def forward(self, hidden: Tensor, context: LayerContext, cache: LayerCache | None = None) -> Tensor:
        """[S, B, H] to [S, B, H]."""
        attended, bias = self.attention(self.attention_norm(hidden), context, cache)
        hidden, normed = self.mlp_norm(hidden, self._branch(attended, bias, context, site=1))
        output, bias = self.mlp(normed)
        return add_branch(hidden, self._branch(output, bias, context, site=2))

    def _branch(self, output: Tensor, bias: Tensor, context: LayerContext, site: int) -> Branch:
        seed = self.build.hidden_dropout_seed(context.dropout_seed)
        seed = None if seed is None else mix(seed, site)
        return Branch(output, bias, self.build.spec.hidden_dropout, seed, self.build.compiles and self.training)
