"""Problems of the batch: its tokens, the data ranks, the micro-batch, the ramp and the interleaved schedule.

In: a LoadedConfig and the number of data ranks (None where the layout has none). Out: problems as text.
"""

from megagpt.config_file import LoadedConfig
from megagpt.config_text import any_of
from megagpt.plan_batches import fitting_micro_batch, ramp_plateaus
from megagpt.plan_checks import closest, divisors


def check_batches(loaded: LoadedConfig, data_ranks: int | None) -> list[str]:
    """Every batch size of the run divides over the data ranks, and by the micro-batch and pipeline where it must."""
    train, length = loaded.config.train, loaded.config.model.sequence_length
    problems = []
    keys = ["train.batch_tokens"]
    if train.batch_ramp_tokens > 0:
        keys.append("train.batch_ramp_start_tokens")
    for key in keys:
        tokens = loaded.value(key)
        if tokens % length != 0:
            problems.append(
                f"{loaded.describe(key)} is not a multiple of {loaded.describe('model.sequence_length')}; "
                f"use {any_of(_nearest_multiples(tokens, length))}"
            )
    if problems:
        return problems
    full = train.batch_tokens // length
    if data_ranks is not None:
        problems += _check_full_batch(loaded, full, data_ranks)
    if train.batch_ramp_tokens > 0:
        problems += _check_ramp(loaded, full, data_ranks)
    if not problems and data_ranks is not None:
        problems += _check_interleaving(loaded, full, data_ranks)
    return problems


def _check_full_batch(loaded: LoadedConfig, full: int, data_ranks: int) -> list[str]:
    train, parallel = loaded.config.train, loaded.config.parallel
    length, micro = loaded.config.model.sequence_length, train.micro_batch_size
    here = f"{loaded.describe('train.batch_tokens')}, {full} sequences a step,"
    if full % data_ranks != 0:
        tokens = any_of(_nearest_multiples(train.batch_tokens, length * data_ranks * micro))
        model_ranks = parallel.tensor * parallel.pipeline
        gpus = any_of([model_ranks * ranks for ranks in closest(data_ranks, divisors(full), 2)])
        return [
            f"{here} does not divide over {data_ranks} data ranks; use train.batch_tokens = {tokens}, or {gpus} GPUs"
        ]
    per_rank = full // data_ranks
    if per_rank % micro != 0:
        tokens = any_of(_nearest_multiples(train.batch_tokens, length * data_ranks * micro))
        return [
            f"{loaded.describe('train.micro_batch_size')} does not divide the {per_rank} sequences of each of "
            f"{data_ranks} data ranks, from {loaded.describe('train.batch_tokens')}; "
            f"use {any_of(closest(micro, divisors(per_rank)))}, or train.batch_tokens = {tokens}"
        ]
    return []


def _check_ramp(loaded: LoadedConfig, full: int, data_ranks: int | None) -> list[str]:
    train, length = loaded.config.train, loaded.config.model.sequence_length
    start = train.batch_ramp_start_tokens // length
    here = loaded.describe("train.batch_ramp_start_tokens")
    ranks = 1 if data_ranks is None else data_ranks
    if full % start == 0 and start % ranks == 0:
        return []
    starts = [size * length for size in divisors(full) if size % ranks == 0]
    fix = (
        f"use {any_of(closest(train.batch_ramp_start_tokens, starts))}"
        if starts
        else f"use a multiple of {ranks * length} that divides the train.batch_tokens you choose instead"
    )
    fix += ", or train.batch_ramp_tokens = 0 for no ramp"
    if full % start != 0:
        return [
            f"{here}: the batch grows by as much a time, which never reaches "
            f"{loaded.describe('train.batch_tokens')}; {fix}"
        ]
    return [f"{here}, {start} sequences a step, does not divide over {ranks} data ranks; {fix}"]


def _check_interleaving(loaded: LoadedConfig, full: int, data_ranks: int) -> list[str]:
    """The interleaved schedule wants a multiple of `pipeline` micro-batches (megatron-core, schedules.py:996-1014)."""
    config = loaded.config
    train, length, pipeline = config.train, config.model.sequence_length, config.parallel.pipeline
    if config.parallel.virtual_stages == 1 or pipeline == 1:
        return []

    def interleaves(sequences: int, micro_batch_size: int = train.micro_batch_size) -> bool:
        per_rank = sequences // data_ranks
        return per_rank // fitting_micro_batch(per_rank, micro_batch_size) % pipeline == 0

    here = f"{loaded.describe('parallel.virtual_stages')} with {loaded.describe('parallel.pipeline')}"
    if not interleaves(full):
        per_rank = full // data_ranks
        micros = [micro for micro in divisors(per_rank) if interleaves(full, micro)]
        unit = length * data_ranks * train.micro_batch_size * pipeline
        fixes = [f"train.batch_tokens = {any_of(_nearest_multiples(train.batch_tokens, unit))}"]
        if micros:
            fixes.insert(0, f"train.micro_batch_size = {any_of(closest(train.micro_batch_size, micros))}")
        return [
            f"{here} needs a multiple of {pipeline} micro-batches a step, and the full batch has "
            f"{per_rank // train.micro_batch_size} ({loaded.describe('train.batch_tokens')}, {data_ranks} data ranks, "
            f"{loaded.describe('train.micro_batch_size')}); use {', or '.join([*fixes, 'parallel.virtual_stages = 1'])}"
        ]
    bad = [sequences for sequences, _ in ramp_plateaus(train, length) if not interleaves(sequences)]
    if not bad:
        return []
    starts = [
        start * length
        for start in divisors(full)
        if start % data_ranks == 0 and all(interleaves(sequences) for sequences in range(start, full + 1, start))
    ]
    fix = f"use train.batch_ramp_start_tokens = {any_of(closest(train.batch_ramp_start_tokens, starts))}"
    shown = any_of(bad) if len(bad) <= 4 else f"{', '.join(map(str, bad[:3]))} and {len(bad) - 3} more sizes"
    return [
        f"{here} needs a multiple of {pipeline} micro-batches a step, and during the batch ramp the batches of "
        f"{shown} sequences have not ({loaded.describe('train.batch_ramp_start_tokens')}, {data_ranks} data "
        f"ranks, {loaded.describe('train.micro_batch_size')}); {fix}, train.batch_ramp_tokens = 0 for no ramp, or "
        "parallel.virtual_stages = 1"
    ]


def _nearest_multiples(value: int, unit: int) -> list[int]:
    """The multiples of `unit` next to `value`, which is none itself or may be one."""
    below = value // unit * unit
    return [multiple for multiple in (below, below + unit) if multiple > 0 and multiple != value]
