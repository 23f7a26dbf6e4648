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
    model = loaded.config.model
    common = gcd(model.num_heads, ffn_size(model))
    if vocab_size is not None:
        common = gcd(common, padded_vocab_size(vocab_size, model.vocab_multiple))
    if loaded.config.parallel.sequence_parallel:
        common = gcd(common, model.sequence_length)
        return divisors(common)[1:] or [1]
    return divisors(common)


def pipeline_sizes(loaded: LoadedConfig) -> list[int]:
    """Every number of pipeline ranks whose chunks hold equally many layers; empty where virtual_stages forbids all."""
    num_layers, virtual = loaded.config.model.num_layers, loaded.config.parallel.virtual_stages
    return [size for size in divisors(num_layers) if num_layers % (size * virtual) == 0 and (virtual == 1 or size > 1)]


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
    """The chunks of the pipeline hold equally many layers."""
    model, parallel = loaded.config.model, loaded.config.parallel
    problems = []
    if parallel.virtual_stages > 1 and parallel.pipeline == 1:
        problems.append(
            f"{loaded.describe('parallel.virtual_stages')} needs a pipeline to interleave, but there is "
            f"{loaded.describe('parallel.pipeline')}; use parallel.virtual_stages = 1, or parallel.pipeline of 2 or "
            "more"
        )
    chunks = parallel.pipeline * parallel.virtual_stages
    if model.num_layers % chunks == 0:
        return problems
    layers = loaded.describe("model.num_layers")
    here = loaded.describe("parallel.pipeline")
    pipelines = closest(parallel.pipeline, pipeline_sizes(loaded))
    if parallel.virtual_stages == 1:
        return [*problems, f"{here} does not divide {layers}; use {any_of(pipelines)}"]
    fixes = []
    if pipelines:
        fixes.append(f"parallel.pipeline = {any_of(pipelines)}")
    if model.num_layers % parallel.pipeline == 0:
        virtual = closest(parallel.virtual_stages, divisors(model.num_layers // parallel.pipeline))
        fixes.append(f"parallel.virtual_stages = {any_of(virtual)}")
    else:
        plain = any_of(closest(parallel.pipeline, divisors(model.num_layers)))
        fixes.append(f"parallel.virtual_stages = 1 with parallel.pipeline = {plain}")
    return [
        *problems,
        f"{here} times {loaded.describe('parallel.virtual_stages')} makes {chunks} chunks, which do not divide "
        f"{layers}; use {', or '.join(fixes)}",
    ]


def check_world(loaded: LoadedConfig, num_gpus: int, vocab_size: int | None) -> list[str]:
    """Tensor and pipeline ranks divide the number of GPUs; what is left is data parallel."""
    parallel = loaded.config.parallel
    model_ranks = parallel.tensor * parallel.pipeline
    if num_gpus % model_ranks == 0:
        return []
    below = num_gpus // model_ranks * model_ranks
    fixes = [f"{any_of([count for count in (below, below + model_ranks) if count > 0])} GPUs"]
    pipelines = [size for size in pipeline_sizes(loaded) if num_gpus % (parallel.tensor * size) == 0]
    if pipelines:
        fixes.append(f"parallel.pipeline = {any_of(closest(parallel.pipeline, pipelines))}")
    tensors = [size for size in tensor_sizes(loaded, vocab_size) if num_gpus % (parallel.pipeline * size) == 0]
    if tensors:
        fixes.append(f"parallel.tensor = {any_of(closest(parallel.tensor, tensors))}")
    return [
        f"{loaded.describe('parallel.tensor')} times {loaded.describe('parallel.pipeline')} is {model_ranks}, which "
        f"does not divide {num_gpus} GPUs; use {', or '.join(fixes)}"
    ]


def check_zero(loaded: LoadedConfig) -> list[str]:
    """ZeRO 0 is for fp32; ZeRO 2 and 3 reduce gradients in the backward pass, before sums other parallelism needs."""
    parallel = loaded.config.parallel
    here = loaded.describe("parallel.zero_stage")
    if parallel.zero_stage == 0 and loaded.config.train.precision != "fp32":
        return [
            f"{here} does not work with {loaded.describe('train.precision')}: DeepSpeed adds 16-bit "
            "gradients up in fp32 with ZeRO alone (runtime/engine.py, _do_optimizer_sanity_check); use 1, 2 or 3, or "
            'train.precision = "fp32"'
        ]
    if parallel.zero_stage < 2:
        return []
    reason = "ZeRO 2 and 3 reduce gradients inside the backward pass, before"
    problems = []
    if parallel.pipeline > 1:
        problems.append(
            f"{here} does not work with {loaded.describe('parallel.pipeline')}: {reason} the tied embedding's "
            "gradients are summed over the two ends of the pipeline; use parallel.zero_stage = 0 or 1, or "
            "parallel.pipeline = 1"
        )
    if parallel.sequence_parallel and parallel.tensor > 1:
        problems.append(
            f"{here} does not work with {loaded.describe('parallel.sequence_parallel')}: {reason} the norms' gradients "
            "are summed over the tensor ranks; use parallel.zero_stage = 0 or 1, or parallel.sequence_parallel = false"
        )
    return problems


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
