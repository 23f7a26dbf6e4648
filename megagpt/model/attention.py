"""Multi-head self-attention on megatron-core's parallel linears: heads are cut over tensor ranks.

With context ranks, positions are cut over them everywhere but in attention itself, where each has whole sequences of
its share of the heads.

Legend: S sequence (this context rank's part), B micro-batch, H hidden, N_local heads on this tensor rank, D head dim;
in attention S_whole = S * c and N_here = N_local / c with c context ranks.
"""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megagpt.kernels.attention import attention
from megagpt.kernels.attention_packing import split_projection
from megagpt.kernels.dropout import mix
from megagpt.model.context import LayerCache, LayerContext, StageBuild
from megagpt.model.linear import column_linear, row_linear
from megagpt.parallel.context import gather_sequence, scatter_sequence


class SelfAttention(nn.Module):
    """Query, key and value projection, causal attention, output projection."""

    def __init__(self, build: StageBuild) -> None:
        super().__init__()
        spec = build.spec
        self.build = build
        self.num_heads_local = spec.num_heads // build.mesh.tensor_size
        self.qkv = column_linear(build, spec.hidden_size, 3 * spec.hidden_size)
        self.output = row_linear(build, spec.hidden_size, spec.hidden_size)

    def forward(self, hidden: Tensor, context: LayerContext, cache: LayerCache | None = None) -> tuple[Tensor, Tensor]:
        """[S, B, H] to [S, B, H] and the bias [H] still to be added.

        Reduces over the tensor group; all-to-all over the context group. With a cache, `hidden` is the new positions.
        """
        head_dim, group = self.build.spec.head_dim, self.build.mesh.context_group
        qkv, _ = self.qkv(hidden)  # [S, B, N_local * 3 * D]
        heads = gather_sequence(qkv.unflatten(-1, (self.num_heads_local, 3 * head_dim)), group)
        if self.build.recompute == "selective" and self.training and cache is None:
            mixed = checkpoint(self._attend, heads, context, None, use_reentrant=False, preserve_rng_state=False)
        else:
            mixed = self._attend(heads, context, cache)
        output, bias = self.output(scatter_sequence(mixed, group).flatten(-2))
        return output, bias

    def _attend(self, heads: Tensor, context: LayerContext, cache: LayerCache | None) -> Tensor:
        """[S_whole, B, N_here, 3 * D] to [S_whole, B, N_here, D]."""
        spec, mesh = self.build.spec, self.build.mesh
        query, key, value = split_projection(heads, spec.head_dim)  # [B, N_here, S_whole, D]
        if cache is not None:
            key, value = cache.append(key, value)
        seed = context.dropout_seed
        if seed is not None:  # every tensor and context rank holds other heads, so other masks
            seed = mix(seed, 1_000 + mesh.tensor_rank * mesh.context_size + mesh.context_rank)
        mixed = attention(
            query, key, value, context.documents, spec.attention_dropout, seed, self.build.attention_backend
        )
        return mixed.permute(2, 0, 1, 3)
