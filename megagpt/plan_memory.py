"""Memory of one GPU by part, from documented formulae. An estimate to choose a layout by, not a measurement.

In: model, layout, train section, micro-batches a step. Out: GpuMemory for a pipeline rank. Legend:
B micro-batch, S sequence (a context rank's part of it), H hidden, F feed-forward, N heads, V padded vocabulary,
t tensor ranks, D data times context ranks, P parameters on the rank, e bytes of a weight or activation (fp32: 4, bf16
and fp16: 2).

weights      e P; ZeRO 3: e P / D, and what it holds gathered: all, but at most 10^9 parameters (MAX_LIVE_VALUES), with
             parameters in files the largest piece. With offload_parameters the gathered ones alone
gradients    4 P: micro-batches are added up in fp32 whatever the precision (parallel/deepspeed_json.py); from ZeRO 2 on
             4 P / D, or nothing with offload_optimizer, which takes them to host memory too
optimizer    fp32 AdamW moments 8 P, and the fp32 master copy 4 P that DeepSpeed keeps with ZeRO 1 to 3, in fp32 too;
             divided by D from ZeRO 1 on. Rajbhandari et al. 2020 (ZeRO), §3 and §5. Nothing with offload_optimizer
host         offload_optimizer: (12 + 4 + e) P / D for moments, master copy, fp32 gradients and the buffer of updated
             weights, and from ZeRO 2 on 4 P / D more where micro-batches are added up (DeepSpeed, zero/stage_1_and_2.py
             accumulated_grads_in_cpu, zero/stage3.py grad_partitions_flat_buffer). offload_parameters: e P / D in host
             memory, or for "nvme" in files, with 5 buffers of 10^8 values (zero/offload_config.py)
temporary    ZeRO 2 and 3 reduce gradients while activations are there: 8 and 10 bytes of each of the 10^8 values of a
             bucket (REDUCE_BUCKET_VALUES, or P where that is less), and with ZeRO 2 a micro-batch's gradients, e P.
             As `--rehearse` counts them for gpt3-13b on 32 GPUs, to 2 % (ZeRO 2) and 13 % (ZeRO 3)
activations  Korthikanti et al. 2022, §4.1-4.2, in bytes a token and layer, without its 5 N S term: the scores stay in
             the fused attention kernel. Whole on each tensor rank, or divided by t with sequence parallelism: 4 e H for
             the inputs of two norms, QKV and feed-forward, and 2 e H of dropout masks where hidden_dropout > 0 (ours
             are kept in the format of the values, the paper's in a byte). Divided by t: 4 e H for Q, K, V and the input
             of the output projection, 2 e F around the GELU, and 4 N for the kernel's log-sum-exp. Recompute
             "selective" drops those last 4 N alone, as a fused kernel keeps no scores anyway. "full" keeps e H of a
             recomputed layer (divided by t with sequence parallelism) and all of the one that is being recomputed.
             tests/parallel/test_plan_memory.py compares this with what autograd saves for a layer on the CPU.
             With fp8 the inputs of the four linears are a byte a value, not e: those of QKV and feed-forward whole on
             each tensor rank, that of the output projection beside the one that attention keeps.
             The first stage adds its embedding dropout mask, the last the inputs of the final norm and of the head.
             Each is held for as many micro-batches as the schedule has in flight (see `chunks_in_flight`); where a
             rank's chunks have unequal numbers of layers, the largest one counts.
logits       e C V / t for a chunk of C tokens (kernels/head_chunks.py), whose gradient takes its place, and the token
             table's gradient, made with it: e H V / t, or 4 H V / t while it is summed in fp32 and then both

Not counted: CUDA context, NCCL's buffers, kernel workspaces, fragmentation. `--rehearse` counts every tensor of a step.
"""

from dataclasses import dataclass

from megagpt.config import TrainSection
from megagpt.kernels.head_chunks import head_chunks
from megagpt.model.cost import count_embedding_parameters, count_head_parameters, count_layer_parameters
from megagpt.model.spec import ModelSpec
from megagpt.parallel.deepspeed_json import MAX_LIVE_VALUES, REDUCE_BUCKET_VALUES
from megagpt.plan_layout import Layout, StagePlan

GIB = 2**30
_GRADIENT_BYTES = 4
_MASTER_BYTES = 4
_MOMENTS_BYTES = 8
_NVME_BUFFER_VALUES = 5 * 10**8
_BUCKET_BYTES = {0: 0, 1: 0, 2: 8, 3: 10}  # of all copies of one value, by ZeRO stage


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on each GPU of one pipeline rank."""

    pipeline_rank: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    temporary_bytes: int
    host_bytes: int = 0  # of host memory, for each GPU
    disk_bytes: int = 0  # of files, for each GPU

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """(name, bytes) of each part in GPU memory."""
        return (
            ("weights", self.weights_bytes),
            ("gradients", self.gradients_bytes),
            ("optimizer", self.optimizer_bytes),
            ("activations", self.activations_bytes),
            ("logits", self.logits_bytes),
            ("temporary", self.temporary_bytes),
        )

    @property
    def total_bytes(self) -> int:
        """Sum of the parts in GPU memory."""
        return sum(size for _, size in self.parts)


def rank_parameters(spec: ModelSpec, layout: Layout, pipeline_rank: int) -> int:
    """Parameters on a GPU of this pipeline rank before ZeRO divides them; the tied table counts at both ends."""
    total = 0
    for stage in layout.chunks(pipeline_rank):
        total += stage.num_layers * count_layer_parameters(spec, layout.tensor)
        if stage.has_embedding:
            total += count_embedding_parameters(spec, layout.tensor)
        if stage.has_head:
            total += count_head_parameters(spec, layout.tensor, has_embedding=layout.pipeline == 1)
    return total


def chunks_in_flight(layout: Layout, pipeline_rank: int, num_micro_batches: int) -> int:
    """Most (model chunk, micro-batch) pairs whose activations a rank holds at once.

    1F1B: warm-up of pipeline - rank - 1 forward passes and one more. Interleaved: 2 (pipeline - rank - 1)
    + (virtual - 1) * pipeline and one more (megatron-core, pipeline_parallel/schedules.py,
    get_pp_rank_microbatches). Never more than there are.
    """
    ranks_after = layout.pipeline - pipeline_rank - 1
    if layout.virtual_stages == 1:
        return min(ranks_after + 1, num_micro_batches)
    warm_up = 2 * ranks_after + (layout.virtual_stages - 1) * layout.pipeline
    return min(warm_up + 1, layout.virtual_stages * num_micro_batches)


def estimate_memory(
    spec: ModelSpec, layout: Layout, train: TrainSection, pipeline_rank: int, num_micro_batches: int
) -> GpuMemory:
    """Peak bytes by part on a GPU of `pipeline_rank`, at the full batch."""
    value_bytes = 4 if train.precision == "fp32" else 2
    parameters = rank_parameters(spec, layout, pipeline_rank)
    shards = [layout.gradient_ranks if layout.zero_stage >= stage else 1 for stage in (1, 2, 3)]
    optimizer_shards, gradient_shards, weight_shards = shards
    offloads_optimizer = layout.offload_optimizer != "none"
    state_bytes = _MOMENTS_BYTES + (_MASTER_BYTES if layout.zero_stage >= 1 else 0)
    weights = _ceil_divide(value_bytes * parameters, weight_shards) if layout.offload_parameters == "none" else 0
    if layout.offload_parameters == "nvme":
        layer = count_layer_parameters(spec, layout.tensor)
        weights += value_bytes * max(layer, count_embedding_parameters(spec, layout.tensor))
    elif layout.zero_stage == 3:
        weights += value_bytes * min(parameters, MAX_LIVE_VALUES)
    gradients = _ceil_divide(_GRADIENT_BYTES * parameters, gradient_shards)
    has_head = any(stage.has_head for stage in layout.chunks(pipeline_rank))
    return GpuMemory(
        pipeline_rank,
        weights_bytes=weights,
        gradients_bytes=0 if offloads_optimizer and layout.zero_stage >= 2 else gradients,
        optimizer_bytes=0 if offloads_optimizer else _ceil_divide(state_bytes * parameters, optimizer_shards),
        activations_bytes=_activation_bytes(spec, layout, train, pipeline_rank, num_micro_batches),
        logits_bytes=_head_bytes(spec, layout, train) if has_head else 0,
        temporary_bytes=_reduction_bytes(layout, value_bytes, parameters),
        host_bytes=_host_bytes(layout, value_bytes, parameters),
        disk_bytes=_ceil_divide(value_bytes * parameters, weight_shards) if layout.offload_parameters == "nvme" else 0,
    )


def _head_bytes(spec: ModelSpec, layout: Layout, train: TrainSection) -> int:
    """One chunk of logits and the token table's gradient on a rank with the head."""
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[train.precision]
    value_bytes = 4 if train.precision == "fp32" else 2
    width = spec.padded_vocab_size // layout.tensor
    num_tokens = train.micro_batch_size * spec.sequence_length // layout.context
    chunks = head_chunks(num_tokens, width, dtype, "cuda")
    table = (value_bytes + (4 if chunks.wide_sum else 0)) * spec.hidden_size * width
    return value_bytes * chunks.tokens * width + table


def _reduction_bytes(layout: Layout, value_bytes: int, parameters: int) -> int:
    bucket = _BUCKET_BYTES[layout.zero_stage] * min(parameters, REDUCE_BUCKET_VALUES)
    return bucket + (value_bytes * parameters if layout.zero_stage == 2 else 0)


def _host_bytes(layout: Layout, value_bytes: int, parameters: int) -> int:
    total = 0
    if layout.offload_optimizer == "cpu":
        per_parameter = _MOMENTS_BYTES + _MASTER_BYTES + _GRADIENT_BYTES + value_bytes
        per_parameter += _GRADIENT_BYTES if layout.zero_stage >= 2 else 0
        total += _ceil_divide(per_parameter * parameters, layout.gradient_ranks)
    if layout.offload_parameters == "cpu":
        total += _ceil_divide(value_bytes * parameters, layout.gradient_ranks)
    if layout.offload_parameters == "nvme":
        total += _NVME_BUFFER_VALUES * value_bytes
    return total


def layer_activation_bytes(spec: ModelSpec, layout: Layout, train: TrainSection) -> int:
    """Bytes a token that one layer keeps for its backward pass; with full recomputation, while it is recomputed."""
    value_bytes = 4 if train.precision == "fp32" else 2
    mask_bytes = value_bytes if spec.hidden_dropout > 0 else 0
    common = (4 * value_bytes + 2 * mask_bytes) * spec.hidden_size
    split = value_bytes * (4 * spec.hidden_size + 2 * spec.ffn_hidden_size)
    whole = 0
    if train.fp8:
        common -= 2 * value_bytes * spec.hidden_size
        split += spec.hidden_size - (value_bytes - 1) * spec.ffn_hidden_size
        whole = 2 * spec.hidden_size
    if train.recompute != "selective":
        split += 4 * spec.num_heads
    return whole + _ceil_divide(common, _sequence_shards(layout)) + _ceil_divide(split, layout.tensor)


def _activation_bytes(
    spec: ModelSpec, layout: Layout, train: TrainSection, pipeline_rank: int, num_micro_batches: int
) -> int:
    value_bytes = 4 if train.precision == "fp32" else 2
    layer = layer_activation_bytes(spec, layout, train)
    chunks = chunks_in_flight(layout, pipeline_rank, num_micro_batches)
    residual = _ceil_divide(value_bytes * spec.hidden_size, _sequence_shards(layout))
    kept = [
        stage.num_layers * layer - _recomputed_layers(stage, train) * (layer - residual)
        for stage in layout.chunks(pipeline_rank)
    ]
    per_token = chunks * max(kept) + (layer if train.recompute == "full" else 0)
    for stage in layout.chunks(pipeline_rank):
        if stage.has_embedding and spec.hidden_dropout > 0:
            per_token += min(_ceil_divide(chunks, layout.virtual_stages), num_micro_batches) * residual
        if stage.has_head:
            per_token += 2 * residual
    return train.micro_batch_size * spec.sequence_length // layout.context * per_token


def _recomputed_layers(stage: StagePlan, train: TrainSection) -> int:
    if train.recompute != "full":
        return 0
    layers = range(stage.first_layer, stage.first_layer + stage.num_layers)
    return sum(layer % train.recompute_every == 0 for layer in layers)


def _sequence_shards(layout: Layout) -> int:
    return layout.tensor if layout.sequence_parallel else 1


def _ceil_divide(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
