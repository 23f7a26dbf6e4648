"""How the model is spread over ranks: the mesh, and which layers each pipeline rank's chunks hold.

In: parallel section, number of layers and of GPUs. Out: Layout. Pure: knows nothing of process groups or tensors.
"""

from dataclasses import dataclass

from megagpt.config import ParallelSection


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
    """The mesh: world_size = tensor * pipeline * data. `stages` in the order in which a token passes them."""

    world_size: int
    tensor: int
    pipeline: int
    virtual_stages: int
    data: int
    sequence_parallel: bool
    zero_stage: int
    stages: tuple[StagePlan, ...]

    def chunks(self, pipeline_rank: int) -> tuple[StagePlan, ...]:
        """The chunks of one pipeline rank, in the order of their chunk index."""
        return tuple(stage for stage in self.stages if stage.pipeline_rank == pipeline_rank)


def make_layout(parallel: ParallelSection, num_layers: int, num_gpus: int) -> Layout:
    """The layout of checked sizes: everything divides.

    With interleaving, chunk c of pipeline rank r is number c * pipeline + r in the model, as in Megatron-LM
    (`megatron/core/transformer/transformer_layer.py`, get_transformer_layer_offset).
    """
    num_chunks = parallel.pipeline * parallel.virtual_stages
    model_ranks = parallel.tensor * parallel.pipeline
    assert num_layers % num_chunks == 0, (num_layers, num_chunks)
    assert num_gpus % model_ranks == 0, (num_gpus, model_ranks)
    per_chunk = num_layers // num_chunks
    stages = tuple(
        StagePlan(
            pipeline_rank=index % parallel.pipeline,
            chunk=index // parallel.pipeline,
            first_layer=index * per_chunk,
            num_layers=per_chunk,
            has_embedding=index == 0,
            has_head=index == num_chunks - 1,
        )
        for index in range(num_chunks)
    )
    return Layout(
        world_size=num_gpus,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual_stages=parallel.virtual_stages,
        data=num_gpus // model_ranks,
        sequence_parallel=parallel.sequence_parallel,
        zero_stage=parallel.zero_stage,
        stages=stages,
    )
