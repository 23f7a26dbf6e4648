"""How the model is spread over ranks: the mesh, and which layers each pipeline rank's chunks hold.

In: parallel section, number of layers and of GPUs. Out: Layout. Pure: knows nothing of process groups or tensors.
"""

from dataclasses import dataclass

from megagpt.config import ParallelSection

_EMBEDDING_LAYERS = 1e-6  # breaks ties against the chunk with the embedding


@dataclass(frozen=True)
class StagePlan:
    """One model chunk: `num_layers` decoder layers from the global `first_layer` on, on one pipeline rank."""

    pipeline_rank: int
    chunk: int
    first_layer: int
    num_layers: int
    has_embedding: bool
    has_head: bool


@dataclass(frozen=True)
class Layout:
    """The mesh: world_size = tensor * context * data * pipeline. `stages` in the order in which a token passes them.

    `data` ranks read different sequences; `context` ranks hold different parts of the same ones.
    """

    world_size: int
    tensor: int
    context: int
    pipeline: int
    virtual_stages: int
    data: int
    sequence_parallel: bool
    zero_stage: int
    offload_optimizer: str  # none or cpu
    offload_parameters: str  # none, cpu or nvme
    stages: tuple[StagePlan, ...]

    @property
    def gradient_ranks(self) -> int:
        """Ranks with the same slices of the model: their gradients are averaged, and ZeRO shards over them."""
        return self.data * self.context

    @property
    def model_ranks(self) -> int:
        """Ranks over which one copy of the model is spread, without ZeRO."""
        return self.tensor * self.pipeline

    @property
    def uneven_layers(self) -> tuple[int, ...] | None:
        """Layers of each chunk in model order where they are not all equal, else None."""
        layers = tuple(stage.num_layers for stage in self.stages)
        return layers if len(set(layers)) > 1 else None

    def chunks(self, pipeline_rank: int) -> tuple[StagePlan, ...]:
        """The chunks of one pipeline rank, in the order of their chunk index."""
        return tuple(stage for stage in self.stages if stage.pipeline_rank == pipeline_rank)


def describe_axes(tensor: int, context: int, pipeline: int, data: int) -> str:
    """`tensor 2 × pipeline 4 × data 8`; context ranks only where there are any."""
    return f"tensor {tensor} × {f'context {context} × ' if context > 1 else ''}pipeline {pipeline} × data {data}"


def balanced_layers(num_layers: int, num_chunks: int, head_layers: float) -> tuple[int, ...]:
    """Layers of each chunk such that the costliest chunk costs least.

    Costs are in layers: the last chunk has the output head, which costs as much as `head_layers` of them. The embedding
    costs no time to speak of, but memory, so the first chunk is the last to get a layer more.
    """
    assert num_chunks <= num_layers, (num_chunks, num_layers)
    layers = [1] * num_chunks
    extra = [0.0] * num_chunks
    extra[0] += _EMBEDDING_LAYERS
    extra[-1] += head_layers
    for _ in range(num_layers - num_chunks):
        cheapest = min(range(num_chunks), key=lambda chunk: layers[chunk] + extra[chunk])
        layers[cheapest] += 1
    return tuple(layers)


def make_layout(parallel: ParallelSection, num_layers: int, num_gpus: int, head_layers: float = 0.0) -> Layout:
    """The layout of checked sizes. `head_layers`: what the output head costs, in layers (see `balanced_layers`).

    With interleaving, chunk c of pipeline rank r is number c * pipeline + r in the model, as in Megatron-LM
    (`megatron/core/transformer/transformer_layer.py`, get_transformer_layer_offset).
    """
    num_chunks = parallel.pipeline * parallel.virtual_stages
    ranks = parallel.tensor * parallel.context * parallel.pipeline
    assert num_gpus % ranks == 0, (num_gpus, ranks)
    layers = parallel.stage_layers
    if layers is None and num_layers % num_chunks == 0:
        layers = (num_layers // num_chunks,) * num_chunks
    elif layers is None:
        layers = balanced_layers(num_layers, num_chunks, head_layers)
    assert (len(layers), sum(layers)) == (num_chunks, num_layers), layers
    stages = tuple(
        StagePlan(
            pipeline_rank=index % parallel.pipeline,
            chunk=index // parallel.pipeline,
            first_layer=sum(layers[:index]),
            num_layers=layers[index],
            has_embedding=index == 0,
            has_head=index == num_chunks - 1,
        )
        for index in range(num_chunks)
    )
    return Layout(
        world_size=num_gpus,
        tensor=parallel.tensor,
        context=parallel.context,
        pipeline=parallel.pipeline,
        virtual_stages=parallel.virtual_stages,
        data=num_gpus // ranks,
        sequence_parallel=parallel.sequence_parallel,
        zero_stage=parallel.zero_stage,
        offload_optimizer=parallel.offload_optimizer,
        offload_parameters=parallel.offload_parameters,
        stages=stages,
    )
