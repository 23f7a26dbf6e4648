"""The GPT-3 decoder as one model chunk: a run of consecutive layers, with the embedding and the head where it has them.

The whole model is one chunk in a single process; pipeline parallelism cuts it into several. Module names are the
global names of `names.py`: layers are keyed by their global number. Knows no optimizer and no schedule.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megagpt.data.batch import Batch
from megagpt.kernels.attention_documents import PackedDocuments
from megagpt.kernels.dropout import mix
from megagpt.kernels.layer_norm import LayerNorm
from megagpt.model.context import LayerCache, LayerContext, StageBuild
from megagpt.model.embedding import Embedding, OutputHead, gather_logits
from megagpt.model.layer import DecoderLayer
from megagpt.model.names import embedding_shapes, final_norm_shapes, layer_shapes
from megagpt.plan import StagePlan


class GPTChunk(nn.Module):
    """Layers `first_layer` … `first_layer + num_layers - 1` of the decoder."""

    def __init__(self, build: StageBuild, stage: StagePlan) -> None:
        super().__init__()
        self.build, self.stage = build, stage
        if stage.has_embedding or stage.has_head:
            self.embedding = Embedding(build, tokens_only=not stage.has_embedding)
        layer_numbers = range(stage.first_layer, stage.first_layer + stage.num_layers)
        self.layers = nn.ModuleDict({str(number): DecoderLayer(build) for number in layer_numbers})
        if stage.has_head:
            spec = build.spec
            self.final_norm = LayerNorm(
                spec.hidden_size, spec.layer_norm_epsilon, build.mcore.params_dtype, build.mesh.device
            )
            self.head = OutputHead(build)
        self._mark_parameters()

    def forward(self, batch: Batch, hidden: Tensor | None, dropout_seed: int | None) -> Tensor:
        """One micro-batch. `hidden` [S, B, H] comes from the chunk before, None on the chunk with the embedding.

        Returns hidden states [S, B, H] for the next chunk, or on the chunk with the head the losses of the tokens
        that count, in nats, summed: [] float32. `dropout_seed` None means no dropout.
        """
        documents = None if batch.documents is None else PackedDocuments(batch.documents)
        context = LayerContext(documents, dropout_seed)
        hidden = self._decode(batch.tokens, batch.positions, hidden, context, None)
        if not self.stage.has_head:
            return hidden
        labels, weights = batch.labels.transpose(0, 1), batch.loss_mask.transpose(0, 1)
        return self.head(self.final_norm(hidden), self.embedding.tokens.weight, labels, weights)

    @torch.no_grad()
    def token_losses(self, batch: Batch) -> Tensor:
        """Loss of each token in nats, [B, S] float32, unmasked; of a whole model in one chunk, without gradients."""
        assert self.stage.has_embedding, "token_losses needs the whole model in one chunk"
        assert self.stage.has_head, "token_losses needs the whole model in one chunk"
        documents = None if batch.documents is None else PackedDocuments(batch.documents)
        hidden = self._decode(batch.tokens, batch.positions, None, LayerContext(documents), None)
        table = self.embedding.tokens.weight
        return self.head.token_losses(self.final_norm(hidden), table, batch.labels.transpose(0, 1)).transpose(0, 1)

    def logits(self, tokens: Tensor, positions: Tensor, caches: dict[str, LayerCache] | None = None) -> Tensor:
        """Logits of a whole model in one chunk, for inference: [B, S] token ids to [B, S, vocab_size].

        With `caches` (one for each layer number) the tokens continue those already cached.
        """
        assert self.stage.has_embedding, "logits needs the whole model in one chunk"
        assert self.stage.has_head, "logits needs the whole model in one chunk"
        hidden = self._decode(tokens, positions, None, LayerContext(), caches)
        logits_local = self.head.logits(self.final_norm(hidden), self.embedding.tokens.weight)
        return gather_logits(logits_local, self.build).transpose(0, 1)

    def _decode(
        self,
        tokens: Tensor,
        positions: Tensor,
        hidden: Tensor | None,
        context: LayerContext,
        caches: dict[str, LayerCache] | None,
    ) -> Tensor:
        """Embedding (where this chunk has it) and layers; returns hidden states [S, B, H]."""
        if self.stage.has_embedding:
            hidden = self.embedding(tokens, positions, context)
        assert hidden is not None, "a chunk without the embedding needs hidden states"
        may_recompute = self.training and caches is None
        for number, layer in self.layers.items():
            seed = context.dropout_seed
            layer_context = context._replace(dropout_seed=None if seed is None else mix(seed, 10_000 + int(number)))
            if may_recompute and self.build.recomputes(int(number)):
                hidden = checkpoint(layer, hidden, layer_context, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = layer(hidden, layer_context, None if caches is None else caches[number])
        return hidden

    def _mark_parameters(self) -> None:
        """Set the attributes by which megatron-core and DeepSpeed tell split parameters from copies.

        `tensor_model_parallel`: each tensor rank holds its own slice, so its gradient counts on every rank in the
        global norm (deepspeed/runtime/utils.py, is_model_parallel_parameter). `sequence_parallel`: every rank holds
        a copy but saw only its part of the sequence, so gradients are summed over the tensor group.
        `ds_pipe_replicated`: the head's copy of the tied table, whose gradient the first stage's copy already counts.
        """
        infos = dict(embedding_shapes(self.build.spec)) | final_norm_shapes(self.build.spec)
        of_layer = layer_shapes(self.build.spec)
        for name, parameter in self.named_parameters():
            parts = name.split(".", 2)
            info = of_layer[parts[2]] if parts[0] == "layers" else infos[name]
            parameter.tensor_model_parallel = info.split_dim is not None  # type: ignore[attr-defined]
            parameter.sequence_parallel = self.build.sequence_parallel and info.split_dim is None  # type: ignore[attr-defined]
            if parts[0] == "embedding" and not self.stage.has_embedding:
                parameter.ds_pipe_replicated = True  # type: ignore[attr-defined]
