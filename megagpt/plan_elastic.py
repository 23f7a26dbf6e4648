"""The nearest layout that works on a number of ranks for which the configured one does not.

In: a LoadedConfig, a number of ranks, and the function that makes a plan or raises. Out: that function's plan of a
configuration whose layout was changed, with a note of what was changed and why. The global batch stays; so do the
ZeRO stage and where things are offloaded to. Pure.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from math import log
from typing import Any, TypeVar

from megagpt.config_file import LoadedConfig
from megagpt.config_text import any_of, show_value
from megagpt.errors import ConfigError
from megagpt.plan_batches import fitting_micro_batch
from megagpt.plan_checks import divisors

Plan = TypeVar("Plan")
ORIGIN = "parallel.elastic"
_COUNTS_NAMED = 4  # of those that work, in the error of one that does not


def nearest_plan(
    loaded: LoadedConfig, num_ranks: int, attempt: Callable[[LoadedConfig, int], Plan]
) -> tuple[Plan, tuple[str, ...]]:
    """The plan of the configured layout, or else of the nearest that works, and notes of what was changed.

    `attempt` makes the plan of a configuration on so many ranks or raises ConfigError. The configured tensor ranks are
    kept where any layout with them works; after that the fewest settings change, by as little as possible. Raises
    ConfigError with numbers of ranks that work where this one does not.
    """
    try:
        return attempt(loaded, num_ranks), ()
    except ConfigError as error:
        problems = error.problems
    found = _search(loaded, num_ranks, attempt)
    if found is not None:
        plan, changes = found
        changed = ", ".join(
            f"{key} = {show_value(value)} instead of {show_value(loaded.value(key))}" for key, value in changes.items()
        )
        return plan, (f"parallel.elastic: on {num_ranks} ranks with {changed}, as {'; '.join(problems)}",)
    counts = _counts_that_work(loaded, num_ranks, attempt)
    if not counts:
        raise ConfigError(problems)  # not about the layout: no number of ranks helps
    raise ConfigError(
        f"{loaded.describe('parallel.elastic')} finds no layout for {num_ranks} ranks with the global batch kept "
        f"({loaded.describe('train.batch_tokens')}); use {any_of(counts)} ranks. The configured layout: {problems[0]}"
    )


def candidate_changes(loaded: LoadedConfig, num_ranks: int) -> list[dict[str, Any]]:
    """Changes by dotted key that give every layout of so many ranks, nearest first; none needs to work otherwise."""
    parallel = loaded.config.parallel
    found = []
    for tensor in divisors(num_ranks):
        for context in divisors(num_ranks // tensor):
            for pipeline in divisors(num_ranks // tensor // context):
                found += list(_layouts(loaded, num_ranks, tensor, context, pipeline))

    def distance(changes: dict[str, Any]) -> tuple[bool, int, float, int]:
        sizes = [(parallel.tensor, "tensor"), (parallel.context, "context"), (parallel.pipeline, "pipeline")]
        ratios = [abs(log(changes.get(f"parallel.{name}", size) / size)) for size, name in sizes]
        micro = changes.get("train.micro_batch_size", loaded.config.train.micro_batch_size)
        return "parallel.tensor" in changes, len(changes), sum(ratios), -micro

    return sorted(found, key=distance)


def _layouts(
    loaded: LoadedConfig, num_ranks: int, tensor: int, context: int, pipeline: int
) -> Iterator[dict[str, Any]]:
    """The changes for given sizes of the mesh: as few settings as must change with them, then without interleaving."""
    parallel, train = loaded.config.parallel, loaded.config.train
    data = num_ranks // (tensor * context * pipeline)
    sequences = train.batch_tokens // loaded.config.model.sequence_length
    if sequences % data:
        return
    # a smaller micro-batch costs speed and changes no sample
    micro = fitting_micro_batch(sequences // data, train.micro_batch_size)
    for virtual in dict.fromkeys((parallel.virtual_stages if pipeline > 1 else 1, 1)):
        layers = parallel.stage_layers
        values = {
            "parallel.tensor": tensor,
            "parallel.context": context,
            "parallel.pipeline": pipeline,
            "parallel.virtual_stages": virtual,
            "parallel.sequence_parallel": parallel.sequence_parallel and tensor > 1,
            "parallel.stage_layers": layers if layers and len(layers) == pipeline * virtual else None,
            "train.micro_batch_size": micro,
        }
        yield {key: value for key, value in values.items() if value != loaded.value(key)}


def _changed_config(loaded: LoadedConfig, changes: dict[str, Any]) -> LoadedConfig:
    """The configuration with other values, whose origin is then parallel.elastic."""
    config = loaded.config
    for key, value in changes.items():
        section, _, field = key.partition(".")
        changed = getattr(config, section).model_copy(update={field: value})
        config = config.model_copy(update={section: changed})
    return replace(loaded, config=config, origins={**loaded.origins, **dict.fromkeys(changes, ORIGIN)})


def _search(
    loaded: LoadedConfig, num_ranks: int, attempt: Callable[[LoadedConfig, int], Plan]
) -> tuple[Plan, dict[str, Any]] | None:
    """The first candidate that works."""
    for changes in candidate_changes(loaded, num_ranks):
        try:
            return attempt(_changed_config(loaded, changes), num_ranks), changes
        except ConfigError:
            continue
    return None


def _counts_that_work(loaded: LoadedConfig, num_ranks: int, attempt: Callable[[LoadedConfig, int], Plan]) -> list[int]:
    """Some numbers of ranks near this one for which there is a layout, ascending."""
    fewer = (count for count in range(num_ranks - 1, 0, -1) if _search(loaded, count, attempt))
    below = list(islice(fewer, _COUNTS_NAMED))
    above = next((count for count in range(num_ranks + 1, 2 * num_ranks + 1) if _search(loaded, count, attempt)), None)
    return sorted([*below, *([above] if above else [])])
