"""Everything that can keep a configuration from working on so many GPUs, found before any process starts.

In: a LoadedConfig, the number of GPUs, the tokenizer's vocabulary. Out: problems as text, each naming the dotted key,
its value, where it came from, and values that work. The batch has a file of its own (`plan_checks_batch.py`).
"""

from math import gcd, lcm

from megagpt.config import ModelSection
from megagpt.config_file import LoadedConfig
from megagpt.config_text import any_of


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def closest(value: int, candidates: list[int], count: int = 6) -> list[int]:
    """At most `count` of the candidates, those with the smallest ratio to `value`, ascending."""
    return sorted(sorted(candidates, key=lambda c: max(c, value) / max(min(c, value), 1))[:count])


def padded_vocab_size(vocab_size: int, multiple: int) -> int:
    """Rows of the embedding table: the same on every layout, so it does not depend on the tensor ranks."""
    return -(-vocab_size // multiple) * multiple


def ffn_size(model: ModelSection) -> int:
    """Width of the feed-forward layer: as set, or four times the hidden size."""
    return model.ffn_hidden_size if model.ffn_hidden_size is not None else 4 * model.hidden_size


def check_vocabulary(loaded: LoadedConfig, tokenizer_vocab_size: int | None) -> list[str]:
    """The vocabulary is known, and holds the tokenizer's ids."""
    vocab_size = loaded.config.model.vocab_size
    if vocab_size is None and tokenizer_vocab_size is None:
        return [
            f"{loaded.describe('model.vocab_size')} and no tokenizer gives it: {loaded.describe('tokenizer.path')}; "
            "train that tokenizer, name one that exists, or set model.vocab_size"
        ]
    if vocab_size is not None and tokenizer_vocab_size is not None and tokenizer_vocab_size > vocab_size:
        return [
            f"{loaded.describe('model.vocab_size')} is less than the {tokenizer_vocab_size} ids of "
            f"{loaded.describe('tokenizer.path')}; use at least {tokenizer_vocab_size}, or unset it"
        ]
    return []


def check_model(loaded: LoadedConfig) -> list[str]:
    """The heads divide the hidden size."""
    model = loaded.config.model
    if model.hidden_size % model.num_heads == 0:
        return []
    values = any_of(closest(model.num_heads, divisors(model.hidden_size)))
    return [
        f"{loaded.describe('model.num_heads')} does not divide {loaded.describe('model.hidden_size')}; use {values}"
    ]


def tensor_sizes(loaded: LoadedConfig, vocab_size: int | None) -> list[int]:
    """Every number of tensor ranks that fits heads, feed-forward, vocabulary and sequence parallelism; never empty."""
    model, context = loaded.config.model, loaded.config.parallel.context
    heads = model.num_heads // context if model.num_heads % context == 0 else model.num_heads
    common = gcd(heads, ffn_size(model))
    if vocab_size is not None:
        common = gcd(common, padded_vocab_size(vocab_size, model.vocab_multiple))
    if loaded.config.parallel.sequence_parallel:
        common = gcd(common, model.sequence_length)
        return divisors(common)[1:] or [1]
    return divisors(common)


def pipeline_sizes(loaded: LoadedConfig) -> list[int]:
    """Every number of pipeline ranks that the layers or `stage_layers` allow; empty where there are none."""
    parallel = loaded.config.parallel
    virtual, most = parallel.virtual_stages, loaded.config.model.num_layers // parallel.virtual_stages
    if parallel.stage_layers is not None:
        sizes = [len(parallel.stage_layers) // virtual] if len(parallel.stage_layers) % virtual == 0 else []
    else:
        sizes = list(range(1, most + 1))
    return [size for size in sizes if virtual == 1 or size > 1]


def check_tensor(loaded: LoadedConfig, vocab_size: int | None) -> list[str]:
    """Tensor parallelism divides heads, feed-forward, vocabulary and, with sequence parallelism, the sequence."""
    model, parallel = loaded.config.model, loaded.config.parallel
    tensor, ffn = parallel.tensor, ffn_size(model)
    here = loaded.describe("parallel.tensor")
    values = any_of(closest(tensor, tensor_sizes(loaded, vocab_size)))
    problems = []
    if model.num_heads % tensor != 0:
        problems.append(f"{here} does not divide {loaded.describe('model.num_heads')}; use {values}")
    if ffn % tensor != 0:
        name = loaded.describe("model.ffn_hidden_size")
        if model.ffn_hidden_size is None:
            name = f"the feed-forward size {ffn}, 4 times {loaded.describe('model.hidden_size')}"
        problems.append(f"{here} does not divide {name}; use {values}")
    padded = 0 if vocab_size is None else padded_vocab_size(vocab_size, model.vocab_multiple)
    if padded % tensor != 0:
        problems.append(
            f"{here} does not divide the padded vocabulary, {padded} = {vocab_size} rounded up to a multiple of "
            f"{loaded.describe('model.vocab_multiple')}; use {values}, or "
            f"model.vocab_multiple = {lcm(model.vocab_multiple, tensor)}"
        )
    if parallel.sequence_parallel and tensor == 1:
        problems.append(
            f"{loaded.describe('parallel.sequence_parallel')} needs tensor ranks, but there is {here}; "
            "use parallel.sequence_parallel = false, or parallel.tensor of 2 or more"
        )
    if parallel.sequence_parallel and model.sequence_length % tensor != 0:
        problems.append(
            f"{loaded.describe('parallel.sequence_parallel')}: {here} does not divide "
            f"{loaded.describe('model.sequence_length')}; use {values}, or parallel.sequence_parallel = false"
        )
    return problems


def check_pipeline(loaded: LoadedConfig) -> list[str]:
    """Every chunk of the pipeline has a layer, and `stage_layers` is of these chunks and layers."""
    model, parallel = loaded.config.model, loaded.config.parallel
    layers, here = loaded.describe("model.num_layers"), loaded.describe("parallel.pipeline")
    problems = []
    if parallel.virtual_stages > 1 and parallel.pipeline == 1:
        problems.append(
            f"{loaded.describe('parallel.virtual_stages')} needs a pipeline to interleave, but there is {here}; "
            "use parallel.virtual_stages = 1, or parallel.pipeline of 2 or more"
        )
    chunks = parallel.pipeline * parallel.virtual_stages
    count = f"{here} times {loaded.describe('parallel.virtual_stages')} makes {chunks} chunks"
    if parallel.stage_layers is not None:
        given = loaded.describe("parallel.stage_layers")
        if len(parallel.stage_layers) != chunks:
            problems.append(
                f"{given} has {len(parallel.stage_layers)} numbers, but {count}; give {chunks}, or unset it"
            )
        if sum(parallel.stage_layers) != model.num_layers:
            problems.append(
                f"{given} adds up to {sum(parallel.stage_layers)}, not to {layers}; change a number by "
                f"{abs(model.num_layers - sum(parallel.stage_layers))}, or unset it"
            )
    elif chunks > model.num_layers:
        fixes = []
        if parallel.virtual_stages <= model.num_layers // 2 or parallel.virtual_stages == 1:
            fixes.append(f"parallel.pipeline of at most {model.num_layers // parallel.virtual_stages}")
        if parallel.virtual_stages > 1 and parallel.pipeline <= model.num_layers:
            fixes.append(f"parallel.virtual_stages of at most {model.num_layers // parallel.pipeline}")
        fixes.append(f"model.num_layers of {chunks} or more")
        problems.append(f"{count}, more than {layers}; use {', or '.join(fixes)}")
    return problems


def check_world(loaded: LoadedConfig, num_gpus: int, vocab_size: int | None) -> list[str]:
    """Tensor, context and pipeline ranks divide the number of GPUs; what is left is data parallel."""
    parallel = loaded.config.parallel
    model_ranks = parallel.tensor * parallel.context * parallel.pipeline
    if num_gpus % model_ranks == 0:
        return []
    below = num_gpus // model_ranks * model_ranks
    fixes = [f"{any_of([count for count in (below, below + model_ranks) if count > 0])} GPUs"]
    context = parallel.context
    pipelines = [size for size in pipeline_sizes(loaded) if num_gpus % (parallel.tensor * context * size) == 0]
    if pipelines:
        fixes.append(f"parallel.pipeline = {any_of(closest(parallel.pipeline, pipelines))}")
    others = parallel.pipeline * context
    tensors = [size for size in tensor_sizes(loaded, vocab_size) if num_gpus % (others * size) == 0]
    if tensors:
        fixes.append(f"parallel.tensor = {any_of(closest(parallel.tensor, tensors))}")
    times = ["parallel.tensor", *(["parallel.context"] if context > 1 else []), "parallel.pipeline"]
    return [
        f"{' times '.join(map(loaded.describe, times))} is {model_ranks}, which "
        f"does not divide {num_gpus} GPUs; use {', or '.join(fixes)}"
    ]


def check_training(loaded: LoadedConfig) -> list[str]:
    """The learning-rate schedule's parts are in order."""
    train = loaded.config.train
    problems = []
    warmup = loaded.describe("train.warmup_tokens")
    schedule = loaded.describe("train.lr_schedule")
    if train.lr_schedule == "noam" and train.warmup_tokens == 0:
        problems.append(f"{warmup} with {schedule}: noam's peak is the end of warm-up; use 1 or more")
    if train.lr_schedule in ("cosine", "linear") and train.warmup_tokens > train.decay_tokens:
        problems.append(
            f"{warmup} is over {loaded.describe('train.decay_tokens')}, where the decay of {schedule} ends; "
            f"use at most {train.decay_tokens}, or train.decay_tokens of at least {train.warmup_tokens}"
        )
    if train.lr_schedule == "wsd":
        start = int(train.decay_tokens * (1 - train.wsd_decay_share))
        if train.warmup_tokens > start:
            problems.append(
                f"{warmup} is over {start}, where the decay of {schedule} begins: the last "
                f"{loaded.describe('train.wsd_decay_share')} of {loaded.describe('train.decay_tokens')}; "
                f"use at most {start}"
            )
    return problems


def check_faults(loaded: LoadedConfig) -> list[str]:
    """A run that goes back before loss spikes keeps checkpoints that are old enough."""
    faults, checkpoint = loaded.config.faults, loaded.config.checkpoint
    if faults.spike_factor is None:
        return []
    interval, factor = loaded.describe("checkpoint.interval_steps"), loaded.describe("faults.spike_factor")
    if checkpoint.interval_steps == 0:
        return [f"{factor}, but with {interval} there is no checkpoint to go back to; use 1 or more"]
    wanted_steps = faults.rewind_steps + faults.spike_patience_steps - 1
    kept_steps = (checkpoint.keep - 1) * checkpoint.interval_steps
    if kept_steps >= wanted_steps or checkpoint.keep_every_steps:
        return []
    keep = 1 - -wanted_steps // checkpoint.interval_steps
    return [
        f"{factor}, but {loaded.describe('checkpoint.keep')} with {interval} keeps checkpoints of at most {kept_steps} "
        f"steps ago, and going back needs {wanted_steps} ({loaded.describe('faults.rewind_steps')}, "
        f"{loaded.describe('faults.spike_patience_steps')}); use checkpoint.keep of at least {keep}"
    ]
