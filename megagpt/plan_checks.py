"""Everything that can keep a configuration from working on so many GPUs, found before any process starts.

In: a LoadedConfig, the number of GPUs, the tokenizer's vocabulary. Out: problems as text, each naming the dotted key, its
value, where it came from, and values that work. The batch has a file of its own (`plan_checks_batch.py`).
"""

from math import gcd, lcm

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


def check_tensor(loaded: LoadedConfig, vocab_size: int | None) -> list[str]:
    """Tensor parallelism divides heads, feed-forward and vocabulary; sequence parallelism fits it."""
    model, parallel = loaded.config.model, loaded.config.parallel
    tensor = parallel.tensor
    here = loaded.describe("parallel.tensor")
    ffn = model.ffn_hidden_size if model.ffn_hidden_size is not None else 4 * model.hidden_size
    working = divisors(gcd(model.num_heads, ffn))
    problems = []
    if model.num_heads % tensor != 0:
        problems.append(
            f"{here} does not divide {loaded.describe('model.num_heads')}; use {any_of(closest(tensor, working))}"
        )
    if ffn % tensor != 0:
        name = loaded.describe("model.ffn_hidden_size")
        if model.ffn_hidden_size is None:
            name = f"4 * model.hidden_size = {ffn} (4 * {loaded.describe('model.hidden_size')})"
        problems.append(f"{here} does not divide {name}; use {any_of(closest(tensor, working))}")
    if vocab_size is not None:
        padded = padded_vocab_size(vocab_size, model.vocab_multiple)
        if padded % tensor != 0:
            values = any_of(closest(tensor, divisors(gcd(gcd(model.num_heads, ffn), padded))))
            problems.append(
                f"{here} does not divide the padded vocabulary, {padded} = {vocab_size} rounded up to a multiple of "
                f"{loaded.describe('model.vocab_multiple')}; use {values}, or "
                f"model.vocab_multiple = {lcm(model.vocab_multiple, tensor)}"
            )
    return problems + _check_sequence_parallel(loaded)


def _check_sequence_parallel(loaded: LoadedConfig) -> list[str]:
    model, parallel = loaded.config.model, loaded.config.parallel
    if not parallel.sequence_parallel:
        return []
    here = loaded.describe("parallel.sequence_parallel")
    if parallel.tensor == 1:
        return [
            f"{here} needs tensor ranks, but there is {loaded.describe('parallel.tensor')}; "
            "use parallel.sequence_parallel = false, or parallel.tensor of 2 or more"
        ]
    if model.sequence_length % parallel.tensor != 0:
        values = any_of(closest(parallel.tensor, divisors(gcd(model.sequence_length, model.num_heads))))
        return [
            f"{here}: {loaded.describe('parallel.tensor')} does not divide {loaded.describe('model.sequence_length')}; "
            f"use parallel.tensor = {values}, or parallel.sequence_parallel = false"
        ]
    return []


def check_pipeline(loaded: LoadedConfig) -> list[str]:
    """The chunks of the pipeline hold equally many layers."""
    model, parallel = loaded.config.model, loaded.config.parallel
    problems = []
    if parallel.virtual_stages > 1 and parallel.pipeline == 1:
        problems.append(
            f"{loaded.describe('parallel.virtual_stages')} needs a pipeline to interleave, but there is "
            f"{loaded.describe('parallel.pipeline')}; use parallel.virtual_stages = 1, or parallel.pipeline of 2 or more"
        )
    if model.num_layers % (parallel.pipeline * parallel.virtual_stages) == 0:
        return problems
    layers = loaded.describe("model.num_layers")
    here = loaded.describe("parallel.pipeline")
    if parallel.virtual_stages == 1:
        values = any_of(closest(parallel.pipeline, divisors(model.num_layers)))
        return [*problems, f"{here} does not divide {layers}; use {values}"]
    fixes = []
    if model.num_layers % parallel.virtual_stages == 0:
        working = divisors(model.num_layers // parallel.virtual_stages)
        fixes.append(f"parallel.pipeline = {any_of(closest(parallel.pipeline, working))}")
    if model.num_layers % parallel.pipeline == 0:
        working = divisors(model.num_layers // parallel.pipeline)
        fixes.append(f"parallel.virtual_stages = {any_of(closest(parallel.virtual_stages, working))}")
    if not fixes:
        working = divisors(model.num_layers)
        fixes.append(
            f"values whose product divides it, such as parallel.pipeline = "
            f"{any_of(closest(parallel.pipeline, working))} with parallel.virtual_stages = 1"
        )
    chunks = parallel.pipeline * parallel.virtual_stages
    return [
        *problems,
        f"{here} times {loaded.describe('parallel.virtual_stages')} makes {chunks} chunks, which do not divide "
        f"{layers}; use {', or '.join(fixes)}",
    ]


def check_world(loaded: LoadedConfig, num_gpus: int) -> list[str]:
    """Tensor and pipeline ranks divide the number of GPUs; what is left is data parallel."""
    parallel = loaded.config.parallel
    model_ranks = parallel.tensor * parallel.pipeline
    if num_gpus % model_ranks == 0:
        return []
    below = num_gpus // model_ranks * model_ranks
    gpus = any_of([count for count in (below, below + model_ranks) if count > 0])
    fixes = [f"{gpus} GPUs"]
    if num_gpus % parallel.tensor == 0:
        working = divisors(gcd(num_gpus // parallel.tensor, loaded.config.model.num_layers))
        fixes.append(f"parallel.pipeline = {any_of(closest(parallel.pipeline, working))}")
    if num_gpus % parallel.pipeline == 0:
        working = divisors(gcd(num_gpus // parallel.pipeline, loaded.config.model.num_heads))
        fixes.append(f"parallel.tensor = {any_of(closest(parallel.tensor, working))}")
    return [
        f"{loaded.describe('parallel.tensor')} times {loaded.describe('parallel.pipeline')} is {model_ranks}, which does "
        f"not divide {num_gpus} GPUs; use {', or '.join(fixes)}"
    ]


def check_zero(loaded: LoadedConfig) -> list[str]:
    """ZeRO 2 and 3 reduce gradients inside the backward hooks, before sums that other parallelism needs."""
    parallel = loaded.config.parallel
    if parallel.zero_stage < 2:
        return []
    here = loaded.describe("parallel.zero_stage")
    reason = "ZeRO 2 and 3 reduce gradients inside the backward pass, before"
    problems = []
    if parallel.pipeline > 1:
        problems.append(
            f"{here} does not work with {loaded.describe('parallel.pipeline')}: {reason} the tied embedding's gradients "
            "are summed over the two ends of the pipeline; use parallel.zero_stage = 0 or 1, or parallel.pipeline = 1"
        )
    if parallel.sequence_parallel and parallel.tensor > 1:
        problems.append(
            f"{here} does not work with {loaded.describe('parallel.sequence_parallel')}: {reason} the norms' gradients "
            "are summed over the tensor ranks; use parallel.zero_stage = 0 or 1, or parallel.sequence_parallel = false"
        )
    return problems


def check_training(loaded: LoadedConfig) -> list[str]:
    """The split sums to 1 and the learning-rate schedule's parts are in order."""
    train, split = loaded.config.train, loaded.config.data.split
    problems = []
    if abs(sum(split) - 1) > 1e-6:
        problems.append(
            f"{loaded.describe('data.split')} sums to {sum(split):g}; the three shares must sum to 1, "
            "such as [0.98, 0.01, 0.01]"
        )
    elif split[0] == 0:
        problems.append(f"{loaded.describe('data.split')} leaves nothing to train on; the first share must be over 0")
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
