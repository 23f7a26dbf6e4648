"""Everything that follows from a configuration and a number of GPUs, worked out before any process starts.

In: a LoadedConfig, the number of GPUs, the tokenizer's vocabulary. Out: a frozen RunPlan, or every problem at once.
Pure: no file, GPU or process group is touched, and nothing is assigned onto the config.
"""

from dataclasses import dataclass, replace

from megagpt.config import RunConfig
from megagpt.config_file import LoadedConfig
from megagpt.config_text import show_value
from megagpt.errors import ConfigError
from megagpt.model.cost import FlopsPerToken, count_parameters, flops_per_token, head_cost_in_layers
from megagpt.model.spec import ModelSpec
from megagpt.plan_batches import BatchPlan, StepBatch, plan_batches
from megagpt.plan_checks import (
    check_faults,
    check_model,
    check_pipeline,
    check_tensor,
    check_training,
    check_vocabulary,
    check_world,
    ffn_size,
    padded_vocab_size,
)
from megagpt.plan_checks_batch import check_batches
from megagpt.plan_checks_data import check_data
from megagpt.plan_checks_layout import check_attention, check_context, check_fp8, check_offload, check_zero
from megagpt.plan_elastic import nearest_plan
from megagpt.plan_layout import Layout, StagePlan, balanced_layers, make_layout
from megagpt.plan_memory import GIB, GpuMemory, estimate_memory, rank_parameters
from megagpt.training.lr import learning_rate

__all__ = [
    "BatchPlan",
    "GpuMemory",
    "Layout",
    "ParameterCounts",
    "RunPlan",
    "StagePlan",
    "StepBatch",
    "make_plan",
]

_WORTH_BALANCING = 0.05  # of the slowest chunk's time
_CHECKPOINT_BYTES = 12  # of a parameter: float32 weight and AdamW's two moments


@dataclass(frozen=True)
class ParameterCounts:
    """Exact numbers of parameters.

    `total` as built, with the embedding rows that pad the vocabulary; `without_padding` without them;
    `per_rank[p]` on one GPU of pipeline rank p before ZeRO divides them (the tied table counts at both ends).
    """

    total: int
    without_padding: int
    per_rank: tuple[int, ...]


@dataclass(frozen=True)
class RunPlan:
    """A run that can work. `origins` says where each configuration value came from, by dotted key."""

    config: RunConfig
    origins: dict[str, str]
    spec: ModelSpec
    layout: Layout
    batches: BatchPlan
    parameters: ParameterCounts
    flops: FlopsPerToken
    memory: tuple[GpuMemory, ...]  # one a pipeline rank
    notes: tuple[str, ...]  # what is allowed but may not be meant

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.batches.num_steps

    @property
    def flops_per_step(self) -> int:
        """Model FLOPs of one step at the full batch, over all GPUs."""
        return self.flops.total * self.config.train.batch_tokens

    @property
    def peak_memory(self) -> GpuMemory:
        """The fullest GPU's memory."""
        return max(self.memory, key=lambda memory: memory.total_bytes)

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint's tensors: weights and optimizer state."""
        return _CHECKPOINT_BYTES * self.parameters.total

    @property
    def checkpoint_copy_bytes(self) -> int:
        """Of each rank's copy in host memory, which a checkpoint is written from while training goes on."""
        if not self.config.checkpoint.asynchronous:
            return 0
        return _CHECKPOINT_BYTES * -(-max(self.parameters.per_rank) // self.layout.gradient_ranks)

    def step_batch(self, step: int) -> StepBatch:
        """The global batch of a 0-based step; pure, O(log of the ramp's stages)."""
        return self.batches.step_batch(step)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the update that ends the 0-based step."""
        return learning_rate(self.config.train, self.batches.tokens_after(step))


def make_plan(
    loaded: LoadedConfig, num_gpus: int, tokenizer_vocab_size: int | None, gpu_memory_gib: float | None = None
) -> RunPlan:
    """The plan of a run on `num_gpus` ranks; with parallel.elastic, on the nearest layout that works on so many.

    `tokenizer_vocab_size` None: the tokenizer is not known, and model.vocab_size must say. `gpu_memory_gib`: the
    memory of one GPU, if it is to be checked. Raises ConfigError with every problem found.
    """
    if num_gpus < 1:
        raise ConfigError(f"a run needs at least 1 GPU or rank, not {num_gpus}")

    def attempt(candidate: LoadedConfig, count: int) -> RunPlan:
        return _plan_as_configured(candidate, count, tokenizer_vocab_size, gpu_memory_gib)

    if not loaded.config.parallel.elastic:
        return attempt(loaded, num_gpus)
    plan, changes = nearest_plan(loaded, num_gpus, attempt)
    return replace(plan, notes=(*changes, *plan.notes))


def _plan_as_configured(
    loaded: LoadedConfig, num_gpus: int, tokenizer_vocab_size: int | None, gpu_memory_gib: float | None
) -> RunPlan:
    """The plan of the layout that the configuration has. Raises ConfigError with every problem found."""
    config = loaded.config
    vocab_size = config.model.vocab_size if config.model.vocab_size is not None else tokenizer_vocab_size
    world_problems = check_world(loaded, num_gpus, vocab_size)
    ranks_a_batch = config.parallel.tensor * config.parallel.context * config.parallel.pipeline
    data_ranks = None if world_problems else num_gpus // ranks_a_batch
    problems = [
        *check_vocabulary(loaded, tokenizer_vocab_size),
        *check_model(loaded),
        *check_tensor(loaded, vocab_size),
        *check_context(loaded),
        *check_attention(loaded),
        *check_pipeline(loaded),
        *world_problems,
        *check_zero(loaded),
        *check_offload(loaded),
        *check_fp8(loaded),
        *check_batches(loaded, data_ranks),
        *check_data(loaded),
        *check_training(loaded),
        *check_faults(loaded),
    ]
    if problems or vocab_size is None or data_ranks is None:
        raise ConfigError(problems)

    spec = _make_spec(config, vocab_size)
    layout = make_layout(config.parallel, spec.num_layers, num_gpus, head_cost_in_layers(spec))
    batches = plan_batches(config.train, spec.sequence_length, data_ranks)
    num_micro_batches = batches.stages[-1].num_micro_batches
    ranks = range(layout.pipeline)
    plan = RunPlan(
        config=config,
        origins=dict(loaded.origins),
        spec=spec,
        layout=layout,
        batches=batches,
        parameters=ParameterCounts(
            total=count_parameters(spec),
            without_padding=count_parameters(spec, padded=False),
            per_rank=tuple(rank_parameters(spec, layout, rank) for rank in ranks),
        ),
        flops=flops_per_token(spec),
        memory=tuple(estimate_memory(spec, layout, config.train, rank, num_micro_batches) for rank in ranks),
        notes=(*_notes(loaded, batches), *_balance_note(spec, layout)),
    )
    if gpu_memory_gib is not None and plan.peak_memory.total_bytes > gpu_memory_gib * GIB:
        raise ConfigError(memory_problem(loaded, plan, f"the {gpu_memory_gib:g} GiB it has"))
    return plan


def _make_spec(config: RunConfig, vocab_size: int) -> ModelSpec:
    model = config.model
    return ModelSpec(
        name=model.name,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        hidden_size=model.hidden_size,
        ffn_hidden_size=ffn_size(model),
        sequence_length=model.sequence_length,
        vocab_size=vocab_size,
        padded_vocab_size=padded_vocab_size(vocab_size, model.vocab_multiple),
        activation=model.activation,
        layer_norm_epsilon=model.layer_norm_epsilon,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        init_std=model.init_std,
    )


def _notes(loaded: LoadedConfig, batches: BatchPlan) -> tuple[str, ...]:
    train = loaded.config.train
    notes = []
    for key, words in (
        ("train.warmup_tokens", "the learning rate never reaches train.lr"),
        ("train.batch_ramp_tokens", "the batch never reaches train.batch_tokens"),
    ):
        if loaded.value(key) > batches.total_tokens:
            notes.append(f"{loaded.describe(key)} is longer than the run of {batches.total_tokens} tokens: {words}")
    if train.steps is not None and loaded.origins["train.tokens"] != "default":
        notes.append(f"{loaded.describe('train.tokens')} is ignored: {loaded.describe('train.steps')}")
    return tuple(notes)


def _balance_note(spec: ModelSpec, layout: Layout) -> list[str]:
    """Where equal chunks wait for the one with the output head, the numbers of layers that would wait less."""
    head, equal = head_cost_in_layers(spec), layout.stages[-1].num_layers
    if layout.pipeline == 1 or layout.uneven_layers is not None:
        return []
    layers = balanced_layers(spec.num_layers, len(layout.stages), head)
    slowest = max([*layers[:-1], layers[-1] + head])
    faster = (equal + head) / slowest - 1
    if faster < _WORTH_BALANCING:
        return []
    return [
        f"the output head costs as much as {head:.1f} layers, and the chunk that has it makes the others wait; with "
        f"parallel.stage_layers = {show_value(layers)} the slowest chunk is {faster:.0%} faster"
    ]


def memory_problem(loaded: LoadedConfig, plan: RunPlan, available: str) -> str:
    """What to say of a plan that needs more memory than there is; `available` in words."""
    memory = plan.peak_memory
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory.parts)
    keys = ["parallel.tensor", "parallel.pipeline", "parallel.zero_stage", "train.micro_batch_size", "train.recompute"]
    return (
        f"a GPU of pipeline rank {memory.pipeline_rank} needs {memory.total_bytes / GIB:.2f} GiB ({parts}), more than "
        f"{available}; use more tensor or pipeline ranks, a higher ZeRO stage, a smaller "
        f"micro-batch or more recomputation than {', '.join(loaded.describe(key) for key in keys)}"
    )
