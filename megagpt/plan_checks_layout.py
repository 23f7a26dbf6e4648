"""Which mechanisms of parallelism work together: context, attention, ZeRO, offloading. `plan_checks.py`: the sizes.

In: a LoadedConfig. Out: problems as text, each with the reason and values that work.
"""

from megagpt.config_file import LoadedConfig
from megagpt.config_text import any_of
from megagpt.kernels.attention_names import ABILITIES, abilities
from megagpt.plan_checks import closest, divisors, ffn_size

_FLOAT8_MULTIPLE = 16  # kernels/float8.py, which imports torch


def check_context(loaded: LoadedConfig) -> list[str]:
    """Context ranks divide the sequence, and each gets whole heads of its tensor rank while it attends."""
    model, parallel = loaded.config.model, loaded.config.parallel
    context = parallel.context
    if context == 1:
        return []
    here = loaded.describe("parallel.context")
    heads_local = model.num_heads // parallel.tensor if model.num_heads % parallel.tensor == 0 else model.num_heads
    shards = parallel.tensor if parallel.sequence_parallel else 1
    fitting = [
        size
        for size in divisors(heads_local)
        if model.sequence_length % (size * shards) == 0 or model.sequence_length % shards != 0
    ]
    values = any_of(closest(context, fitting))
    problems = []
    if heads_local % context != 0:
        problems.append(
            f"{here} does not divide the {heads_local} heads that {loaded.describe('parallel.tensor')} leaves of "
            f"{loaded.describe('model.num_heads')}: attention gives each context rank whole heads; use {values}"
        )
    if model.sequence_length % shards == 0 and model.sequence_length % (context * shards) != 0:
        with_tensor = f" times {loaded.describe('parallel.tensor')} with sequence parallelism" if shards > 1 else ""
        problems.append(f"{here}{with_tensor} does not divide {loaded.describe('model.sequence_length')}; use {values}")
    return problems


def check_attention(loaded: LoadedConfig) -> list[str]:
    """What computes attention can do what the run asks of it. Whether it is installed, the run finds when it starts."""
    train, model = loaded.config.train, loaded.config.model
    if train.attention_backend == "auto":
        return []
    asked = {
        "train.precision": train.precision == "fp32",
        "model.attention_dropout": model.attention_dropout > 0.0,
        "data.separate_documents": loaded.config.data.separate_documents,
    }
    can = ABILITIES[train.attention_backend]
    cannot = [key for (key, is_asked), able in zip(asked.items(), can[:3], strict=True) if is_asked and not able]
    values = any_of(["auto", *abilities(*asked.values())])
    here = loaded.describe("train.attention_backend")
    return [f"{here} does not work with {loaded.describe(key)}; use {values}" for key in cannot]


def check_zero(loaded: LoadedConfig) -> list[str]:
    """ZeRO 0 is for fp32; ZeRO 2 and 3 reduce gradients in the backward pass, before the tied table is summed."""
    parallel = loaded.config.parallel
    here = loaded.describe("parallel.zero_stage")
    if parallel.zero_stage == 0 and loaded.config.train.precision != "fp32":
        return [
            f"{here} does not work with {loaded.describe('train.precision')}: DeepSpeed adds 16-bit "
            "gradients up in fp32 with ZeRO alone (runtime/engine.py, _do_optimizer_sanity_check); use 1, 2 or 3, or "
            'train.precision = "fp32"'
        ]
    if parallel.zero_stage >= 2 and parallel.pipeline > 1:
        return [
            f"{here} does not work with {loaded.describe('parallel.pipeline')}: ZeRO 2 and 3 reduce gradients inside "
            "the backward pass, before the tied embedding's gradients are summed over the two ends of the pipeline; "
            "use parallel.zero_stage = 0 or 1, or parallel.pipeline = 1"
        ]
    return []


def check_fp8(loaded: LoadedConfig) -> list[str]:
    """float8 stands in for bf16 alone, and every dim of its products is a multiple of 16 (kernels/float8.py)."""
    config = loaded.config
    if not config.train.fp8:
        return []
    here, model, parallel = loaded.describe("train.fp8"), config.model, config.parallel
    problems = []
    if config.train.precision != "bf16":
        problems.append(
            f"{here} does not work with {loaded.describe('train.precision')}: float8 products have bf16 inputs and "
            'outputs; use train.precision = "bf16", or train.fp8 = false'
        )
    for key, size, divisors_of in (
        ("model.hidden_size", model.hidden_size, parallel.tensor),
        ("model.ffn_hidden_size", ffn_size(model), parallel.tensor),
        ("model.sequence_length", model.sequence_length, parallel.context),
    ):
        if size % (_FLOAT8_MULTIPLE * divisors_of):
            cut = f", {size // divisors_of} on each rank" if divisors_of > 1 else ""
            problems.append(
                f"{here} needs multiples of {_FLOAT8_MULTIPLE} in every dim of a matrix product, but "
                f"{loaded.describe(key)}{'' if loaded.value(key) else f' follows as {size}'}{cut}; use a multiple of "
                f"{_FLOAT8_MULTIPLE * divisors_of}, or train.fp8 = false"
            )
    return problems


def check_offload(loaded: LoadedConfig) -> list[str]:
    """Only what ZeRO partitions can be offloaded, and files need a folder."""
    parallel = loaded.config.parallel
    stage = loaded.describe("parallel.zero_stage")
    problems = []
    if parallel.offload_optimizer != "none" and parallel.zero_stage == 0:
        problems.append(
            f"{loaded.describe('parallel.offload_optimizer')} needs optimizer state that ZeRO partitions, but there is "
            f'{stage}; use parallel.zero_stage = 1, 2 or 3, or parallel.offload_optimizer = "none"'
        )
    if parallel.offload_parameters != "none" and parallel.zero_stage != 3:
        problems.append(
            f"{loaded.describe('parallel.offload_parameters')} needs parameters that ZeRO 3 partitions, but there is "
            f'{stage}; use parallel.zero_stage = 3, or parallel.offload_parameters = "none"'
        )
    if parallel.offload_parameters == "nvme" and parallel.nvme_folder is None:
        problems.append(
            f"{loaded.describe('parallel.offload_parameters')} needs a folder on a local disk, but there is "
            f"{loaded.describe('parallel.nvme_folder')}; set parallel.nvme_folder"
        )
    return problems
