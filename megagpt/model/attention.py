"""Multi-head self-attention on megatron-core's parallel linears: heads are cut over tensor ranks.

Legend: S sequence, B micro-batch, H hidden, N_local heads on this tensor rank, D head dim.
"""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megagpt.kernels.attention import attention
from megagpt.kernels.dropout import mix
from megagpt.model.context import LayerCache, LayerContext, StageBuild
from megagpt.model.linear import column_linear, row_linear


class SelfAttention(nn.Module):
    """Query, key and value projection, causal attention, output projection."""

    def __init__(self, build: StageBuild) -> None:
        super().__init__()
        spec = build.spec
        self.build = build
        self.num_heads_local = spec.num_heads // build.mesh.tensor_size
        self.qkv = column_linear(build, spec.hidden_size, 3 * spec.hidden_size)
        self.output = row_linear(build, spec.hidden_size, spec.hidden_size)

    def forward(self, hidden: Tensor, context: LayerContext, cache: LayerCache | None = None) -> Tensor:
        """[S, B, H] to [S, B, H]. Reduces over the tensor group. With a cache, `hidden` is the new positions."""
        qkv, _ = self.qkv(hidden)  # [S, B, N_local * 3 * D]
        if self.build.recompute == "selective" and self.training and cache is None:
            mixed = checkpoint(self._attend, qkv, context, None, use_reentrant=False, preserve_rng_state=False)
        else:
            mixed = self._attend(qkv, context, cache)
        output, _ = self.output(mixed)
        return output

    def _attend(self, qkv: Tensor, context: LayerContext, cache: LayerCache | None) -> Tensor:
        """[S, B, N_local * 3 * D] to [S, B, N_local * D]."""
        spec = self.build.spec
        length, batch, _ = qkv.shape
        heads = qkv.view(length, batch, self.num_heads_local, 3, spec.head_dim)
        query, key, value = heads.permute(3, 1, 2, 0, 4)  # each [B, N_local, S, D]
        if cache is not None:
            key, value = cache.append(key, value)
        seed = context.dropout_seed
        if seed is not None:  # every tensor rank holds other heads, so other masks
            seed = mix(seed, 1_000 + self.build.mesh.tensor_rank)
        mixed = attention(query, key, value, context.mask, spec.attention_dropout, seed)
        return mixed.permute(2, 0, 1, 3).reshape(length, batch, -1)
