"""Token and position tables in, hidden states out; and the output head, tied to the token table.

Legend: S sequence, B micro-batch, H hidden, V_local this tensor rank's columns of the padded vocabulary. Under
sequence parallelism hidden states are [S / tensor ranks, B, H] between layers.
"""

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from torch import Tensor, nn

from megagpt.kernels.cross_entropy import VocabColumns
from megagpt.kernels.dropout import dropout, mix
from megagpt.kernels.output_head import head_loss, token_losses
from megagpt.model.context import LayerContext, StageBuild, no_init


class Embedding(nn.Module):
    """Sum of token and position embeddings, then dropout. With `tokens_only`, just the table tied to the head."""

    def __init__(self, build: StageBuild, tokens_only: bool = False) -> None:
        super().__init__()
        spec = build.spec
        self.build = build
        self.tokens = VocabParallelEmbedding(
            spec.padded_vocab_size,
            spec.hidden_size,
            init_method=no_init,
            reduce_scatter_embeddings=build.sequence_parallel,
            config=build.mcore,
            tp_group=build.mesh.tensor_group,
        )
        if not tokens_only:
            self.positions = nn.Embedding(
                spec.sequence_length, spec.hidden_size, dtype=build.mcore.params_dtype, device=build.mesh.device
            )

    def forward(self, tokens: Tensor, positions: Tensor, context: LayerContext) -> Tensor:
        """tokens and positions [B, S] int64 to hidden states [S, B, H]. Reduces over the tensor group."""
        hidden = self.tokens(tokens)  # [B, S, H], or [S / t, B, H] under sequence parallelism
        positions = positions.transpose(0, 1)  # [S, B]
        if self.build.sequence_parallel:
            positions = positions.chunk(self.build.mesh.tensor_size)[self.build.mesh.tensor_rank]
        else:
            hidden = hidden.transpose(0, 1)
        hidden = hidden + self.positions(positions)
        seed = self.build.hidden_dropout_seed(context.dropout_seed)
        return dropout(hidden.contiguous(), self.build.spec.hidden_dropout, None if seed is None else mix(seed, 1))


class OutputHead(nn.Module):
    """Losses from hidden states with the token table as the matrix; it owns no parameters."""

    def __init__(self, build: StageBuild) -> None:
        super().__init__()
        self.build = build
        self.columns = VocabColumns(build.spec.vocab_size, build.mesh.tensor_rank, build.mesh.tensor_group)

    def forward(self, hidden: Tensor, table: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Σ weights x losses, [] float32: hidden [S, B, H], table [V_local, H], labels [S, B] int64, weights [S, B].

        Makes the gradients too where they are wanted (kernels/output_head.py). Reduces over the tensor group.
        """
        return head_loss(hidden, table, labels, weights, self.columns, self.build.sequence_parallel)

    def token_losses(self, hidden: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Loss of each token, [S, B] float32, without gradients. Reduces over the tensor group."""
        return token_losses(hidden, table, labels, self.columns, self.build.sequence_parallel)

    def logits(self, hidden: Tensor, table: Tensor) -> Tensor:
        """hidden [S, B, H] and table [V_local, H] to logits [S, B, V_local]; no gradient. For inference."""
        assert not self.build.sequence_parallel, "inference has no sequence parallelism"
        return torch.nn.functional.linear(hidden, table)


def gather_logits(logits_local: Tensor, build: StageBuild) -> Tensor:
    """[..., V_local] to [..., vocab_size] on every tensor rank, padding cut off; no gradient. For inference."""
    if build.mesh.tensor_size > 1:
        parts = [torch.empty_like(logits_local) for _ in range(build.mesh.tensor_size)]
        torch.distributed.all_gather(parts, logits_local.contiguous(), group=build.mesh.tensor_group)
        logits_local = torch.cat(parts, dim=-1)
    return logits_local[..., : build.spec.vocab_size]
