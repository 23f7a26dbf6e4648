"""What the user writes: frozen sections of a run, read from TOML and the command line by `config_file.py`.

A config never computes and never does I/O: what follows from it (sizes, layouts, steps) is in `plan.py`.
Defaults are the GPT-3 recipe of Brown et al. 2020, appendix B, where the paper gives a value.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from megagpt.config_text import wanted
from megagpt.config_types import AttentionBackend, Split, StageLayers, Tokens


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, no silent cast of strings to numbers or back."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RunSection(Section):
    """Name, place and seed of a run."""

    name: str = Field(default="gpt", min_length=1, description="name of the run, shown in logs and wandb")
    folder: str = Field(default="runs/gpt", min_length=1, description="folder for everything that the run writes")
    seed: int = Field(default=1234, ge=0, description="seed from which every random stream of the run is derived")


class ModelSection(Section):
    """Shape of the decoder."""

    name: str = Field(
        default="gpt", min_length=1, description="name of the model family member, stored in checkpoints and exports"
    )
    num_layers: int = Field(default=12, ge=1, description="number of decoder layers")
    num_heads: int = Field(default=12, ge=1, description="number of attention heads; divides hidden_size")
    hidden_size: int = Field(default=768, ge=1, description="width of the residual stream (d_model)")
    ffn_hidden_size: int | None = Field(
        default=None, ge=1, description="width of the feed-forward layer; unset: 4 * hidden_size"
    )
    sequence_length: int = Field(default=2048, ge=2, description="context in tokens, and number of learned positions")
    vocab_size: int | None = Field(
        default=None, ge=2, description="token ids the model can hold, before padding; unset: what the tokenizer has"
    )
    vocab_multiple: int = Field(default=128, ge=1, description="the embedding table is padded to a multiple of this")
    activation: Literal["gelu_tanh", "gelu_erf"] = Field(
        default="gelu_tanh", description="form of GELU: the tanh approximation (GPT-2, GPT-3) or the exact erf"
    )
    layer_norm_epsilon: float = Field(default=1e-5, gt=0, description="epsilon of every LayerNorm")
    hidden_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout after the embedding, attention and feed-forward outputs"
    )
    attention_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of attention probabilities")
    init_std: float = Field(
        default=0.02,
        gt=0,
        description="standard deviation of initial weights; residual projections divide it by sqrt(2 * num_layers)",
    )


class TokenizerSection(Section):
    """The tokenizer that made the dataset."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="tokenizer.model, tokenizer.json or vocab.txt, or KIND:FILE, such as jieba-bpe:tokenizer.json",
    )


class CorpusSection(Section):
    """One corpus of a blend."""

    path: str = Field(min_length=1, description="indexed dataset without suffix: PATH.bin and PATH.idx")
    weight: float = Field(
        default=1.0, gt=0, description="share of the training tokens, relative to the other corpora's weights"
    )
    name: str | None = Field(default=None, min_length=1, description="name in reports; unset: the last part of path")
    split: Split | None = Field(default=None, description="shares of its documents; unset: data.split")


def parse_corpora(value: Any) -> Any:
    """Corpora from a list of tables. Raises ValueError with the fix."""
    such_as = 'such as [{path = "data/news", weight = 0.7}, {path = "data/books", weight = 0.3}]'
    if value is None or (isinstance(value, tuple) and all(isinstance(corpus, CorpusSection) for corpus in value)):
        return value
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(corpus, dict) for corpus in value):
        raise ValueError(f"must be a list of tables with path and weight, {such_as}")
    corpora = []
    for number, table in enumerate(value, start=1):
        if "path" not in table:
            raise ValueError(f"has no path in its table {number}; each needs one, {such_as}")
        unknown = [key for key in table if key not in CorpusSection.model_fields]
        if unknown:
            known = ", ".join(CorpusSection.model_fields)
            raise ValueError(f"has an unknown key {unknown[0]} in its table {number}; the keys are {known}")
        try:
            corpora.append(CorpusSection(**table))
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            raise ValueError(f"is wrong in its table {number}: {detail['loc'][0]} {wanted(detail)}") from None
    return tuple(corpora)


Corpora = Annotated[tuple[CorpusSection, ...] | None, BeforeValidator(parse_corpora)]


class DataSection(Section):
    """The indexed dataset, or several with their weights, and how sequences are cut from them."""

    path: str | None = Field(
        default=None, min_length=1, description="indexed dataset without suffix: PATH.bin and PATH.idx"
    )
    corpora: Corpora = Field(
        default=None,
        description="instead of path, several datasets: a list of tables with path, weight (share of the training "
        "tokens, relative to the others'), and, if wanted, name and split; on the command line as in TOML",
    )
    split: Split = Field(
        default=(0.98, 0.01, 0.01), description="shares of documents for training, validation and test; they sum to 1"
    )
    separate_documents: bool = Field(
        default=False, description="keep packed documents apart: attention and positions restart at each document"
    )
    index_folder: str | None = Field(
        default=None,
        min_length=1,
        description="folder of sample indexes; unset: beside each dataset, or the user's cache if that is read-only",
    )
    verify_hashes: bool = Field(
        default=False, description="before training, read every dataset and compare it with the hashes of its build"
    )


class TrainSection(Section):
    """Length, batch, precision, optimizer and learning rate."""

    tokens: Tokens = Field(
        default=300 * 10**9, gt=0, description="tokens to train on; ignored where train.steps is set"
    )
    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps to train for; unset: as many as train.tokens needs"
    )
    batch_tokens: Tokens = Field(
        default=524_288, gt=0, description="tokens a step over all ranks; a multiple of sequence_length"
    )
    micro_batch_size: int = Field(default=1, ge=1, description="most sequences in one forward pass on one rank")
    batch_ramp_start_tokens: Tokens = Field(
        default=32_768,
        gt=0,
        description="tokens a step at the start of the batch ramp, and the increment of its growth",
    )
    batch_ramp_tokens: Tokens = Field(
        default=0, ge=0, description="tokens over which the batch grows to batch_tokens; 0: no ramp"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="bf16", description="number format of weights and activations"
    )
    fp8: bool = Field(
        default=False,
        description="with bf16: matrix products of the layers in float8 (GPUs of compute capability 8.9 or more)",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile for what lies between matrix products, instead of the package's own kernels",
    )
    attention_backend: AttentionBackend = Field(
        default="auto",
        description="what computes attention; auto: by device, documents and precision (docs/training.md)",
    )
    recompute: Literal["none", "selective", "full"] = Field(
        default="none",
        description="activations recomputed in the backward pass: none, attention (selective) or whole layers (full)",
    )
    recompute_every: int = Field(
        default=1, ge=1, description="with recompute full: only layers 0, n, 2n, … are recomputed; 1: every layer"
    )
    lr: float = Field(default=6.0e-4, gt=0, description="peak learning rate")
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="final learning rate as a share of the peak")
    lr_schedule: Literal["cosine", "linear", "constant", "wsd", "noam"] = Field(
        default="cosine",
        description="decay after warm-up; wsd: constant, then linear over the last wsd_decay_share of decay_tokens",
    )
    warmup_tokens: Tokens = Field(default=375 * 10**6, ge=0, description="tokens of linear warm-up from zero")
    decay_tokens: Tokens = Field(
        default=260 * 10**9, gt=0, description="tokens at which the decay ends, warm-up included"
    )
    wsd_decay_share: float = Field(default=0.1, gt=0, le=1, description="share of decay_tokens in which wsd decays")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW decay of the first moment")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW decay of the second moment")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(
        default=0.1, ge=0, description="AdamW weight decay of matrices; biases and norms have none"
    )
    clip_grad: float = Field(default=1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    fp16_initial_scale_power: int = Field(
        default=16, ge=0, le=32, description="fp16: the loss scale starts at 2 to this power"
    )
    fp16_scale_window_steps: int = Field(
        default=1000, ge=1, description="fp16: steps without overflow before the scale doubles"
    )


class ParallelSection(Section):
    """How the model and the data are spread over ranks; data parallelism takes what is left."""

    tensor: int = Field(default=1, ge=1, description="tensor-parallel ranks; divides num_heads")
    pipeline: int = Field(default=1, ge=1, description="pipeline stages")
    virtual_stages: int = Field(
        default=1, ge=1, description="model chunks on each pipeline rank; over 1: interleaved schedule"
    )
    sequence_parallel: bool = Field(
        default=False, description="split norms and dropout along the sequence over tensor ranks"
    )
    stage_layers: StageLayers = Field(
        default=None,
        description="decoder layers of each model chunk, in the order in which a token passes them; unset: equally "
        "many, or, where layers do not divide, balanced with the output head counted",
    )
    context: int = Field(
        default=1,
        ge=1,
        description="context-parallel ranks, each with a part of every sequence; times tensor it divides num_heads",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1, description="DeepSpeed ZeRO stage over the data-parallel and context-parallel ranks"
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        default="none", description="where optimizer state lives and is updated: GPU memory (none), or host memory"
    )
    offload_parameters: Literal["none", "cpu", "nvme"] = Field(
        default="none", description="where ZeRO 3 keeps its parameter shards: GPU memory (none), host memory, or files"
    )
    nvme_folder: str | None = Field(
        default=None, min_length=1, description='folder on a local disk for offload_parameters = "nvme"'
    )
    elastic: bool = Field(
        default=False,
        description="where the layout does not fit the number of ranks, train on the nearest that does, with the same "
        "batch; false: refuse",
    )
    check_replicas_interval_steps: int = Field(
        default=100, ge=0, description="steps between checks that copies of weights are equal on all ranks; 0: never"
    )


class ClusterSection(Section):
    """The machines that a run is meant for: what `megagpt plan` assumes where its arguments do not say."""

    gpu: str | None = Field(default=None, min_length=1, description="type of GPU, such as A100-80G, H100-80G or H200")
    num_gpus: int | None = Field(default=None, ge=1, description="number of GPUs")


class EvaluationSection(Section):
    """Validation during training."""

    interval_steps: int = Field(default=1000, ge=0, description="steps between evaluations; 0: only at the end")
    max_batches: int = Field(
        default=100, ge=1, description="most global batches of train.batch_tokens that one evaluation reads"
    )


class CheckpointSection(Section):
    """Saving and resuming."""

    interval_steps: int = Field(default=1000, ge=0, description="steps between checkpoints; 0: only at the end")
    keep: int = Field(default=3, ge=1, description="newest checkpoints kept; older ones are removed")
    keep_every_steps: int = Field(
        default=0, ge=0, description="checkpoints of every so many steps are never removed; 0: all but the newest are"
    )
    asynchronous: bool = Field(
        default=True,
        description="save beside the training, from a copy in host memory of 12 bytes a parameter, divided over the "
        "ranks; false: training waits until a checkpoint is written",
    )
    resume: Literal["auto", "latest", "never"] = Field(
        default="auto",
        description="auto: continue from the folder's newest checkpoint that is whole, if it has one; latest: from the "
        "latest or not at all; never: refuse to start where one exists",
    )


class FaultsSection(Section):
    """What is done about ranks that hang or are slow, and steps that go wrong."""

    hang_timeout_seconds: float = Field(
        default=1800,
        ge=0,
        le=1_000_000,
        description="seconds without progress after which every rank prints its stacks and ends with status 75; "
        "0: never",
    )
    slow_rank_ratio: float = Field(
        default=1.5,
        ge=0,
        description="a rank that takes this many times as long as the median of its stage is named; 0: never",
    )
    not_finite: Literal["stop", "skip"] = Field(
        default="stop",
        description="a loss or gradient that is not finite: stop training, or skip the step's update and go on",
    )
    most_skipped_steps: int = Field(
        default=10, ge=1, description="updates that may be skipped in a row; at one more, training stops"
    )
    spike_factor: float | None = Field(
        default=None,
        gt=0,
        description="standard deviations above the median of the last losses from which a loss is a spike, such as 7; "
        "the run then goes back to a checkpoint and leaves samples out; unset: never",
    )
    spike_window_steps: int = Field(
        default=100, ge=2, description="steps whose losses a spike is measured by; before so many there is none"
    )
    spike_patience_steps: int = Field(
        default=3, ge=1, description="steps in a row whose loss must be a spike before the run goes back"
    )
    rewind_steps: int = Field(
        default=100, ge=0, description="steps before a loss spike that the checkpoint to go back to is old, or more"
    )
    skip_steps: int = Field(
        default=100,
        ge=0,
        description="steps after a loss spike whose samples are left out, as are all since the checkpoint",
    )
    most_rewinds: int = Field(
        default=20, ge=1, description="times that the whole run may go back; at one more, training stops"
    )


class LogSection(Section):
    """Where metrics go; metrics.jsonl is always written."""

    interval_steps: int = Field(default=1, ge=1, description="steps between log lines")
    tensorboard: bool = Field(default=True, description="write TensorBoard event files")
    wandb: Literal["disabled", "offline", "online"] = Field(default="disabled", description="Weights & Biases mode")
    wandb_project: str = Field(default="megagpt", min_length=1, description="Weights & Biases project")


class RunConfig(Section):
    """Everything the user can say about a run."""

    run: RunSection = Field(default_factory=RunSection, description="name, place and seed")
    model: ModelSection = Field(default_factory=ModelSection, description="shape of the decoder")
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection, description="tokenizer")
    data: DataSection = Field(default_factory=DataSection, description="dataset")
    train: TrainSection = Field(
        default_factory=TrainSection, description="length, batch, precision, optimizer, learning rate"
    )
    parallel: ParallelSection = Field(default_factory=ParallelSection, description="layout over ranks")
    cluster: ClusterSection = Field(default_factory=ClusterSection, description="machines the run is meant for")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="validation")
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection, description="saving and resuming")
    faults: FaultsSection = Field(default_factory=FaultsSection, description="hangs and slow ranks")
    log: LogSection = Field(default_factory=LogSection, description="metrics")
