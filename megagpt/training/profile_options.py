"""`--profile [STEPS] [--profile-ranks RANKS]`: which steps of a session are profiled, on which ranks.

In: words of the command line. Out: ProfileOptions, and once the run is known the steps. Must not import torch:
variables that silence its profiler count only before that.
"""

import argparse
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from megagpt.errors import ConfigError
from megagpt.plan_layout import Layout

if TYPE_CHECKING:
    from megagpt.training.prepare import PreparedRun

_MOST_STEPS = 20
_STEPS = re.compile(r"(\d+)(?:-(\d+))?")
_LOOKS_LIKE_STEPS = re.compile(r"\d[\d\s.,:-]*")
# torch's profiler reports each of its stages, and warns of memory that is older than itself, on standard error
_QUIET = {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}


class ProfileOptions(NamedTuple):
    """What was asked for."""

    steps: tuple[int, int] | None  # first and last, from 1 as in metrics.jsonl; None: those of `chosen_steps`
    ranks: tuple[int, ...] | None  # None: one of each pipeline stage
    all_ranks: bool = False


class ProfiledSteps(NamedTuple):
    """What that is in a session: steps, 0-based, and ranks."""

    steps: range
    ranks: tuple[int, ...]


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """`--profile` and `--profile-ranks`."""
    parser.add_argument(
        "--profile",
        nargs="?",
        const="",
        metavar="STEPS",
        help="write RUN/profile: where the time of some steps went and what limits them, traces, memory. STEPS: one, "
        "such as 500, or 500-502 (default: the session's fourth and fifth)",
    )
    parser.add_argument(
        "--profile-ranks",
        metavar="RANKS",
        help="ranks to profile: all, or some such as 0,8-11 (default: one of each pipeline stage)",
    )


def settle_profile_words(words: list[str]) -> list[str]:
    """The same words with `--profile` bare where the word after it is no STEPS, such as the configuration's name."""
    settled = []
    for number, word in enumerate(words):
        after = words[number + 1] if number + 1 < len(words) else ""
        is_bare = word == "--profile" and not _LOOKS_LIKE_STEPS.fullmatch(after)
        settled.append("--profile=" if is_bare else word)
    return settled


def profile_words(options: argparse.Namespace) -> list[str]:
    """The words again, of options that were given: for whoever hands them on to `megagpt train`."""
    words = [] if options.profile is None else [f"--profile={options.profile}" if options.profile else "--profile"]
    return [*words, *([] if options.profile_ranks is None else [f"--profile-ranks={options.profile_ranks}"])]


def parse_profile(options: argparse.Namespace) -> ProfileOptions | None:
    """What was asked for; None: no profile. Raises ConfigError with the fix."""
    steps, ranks = options.profile, options.profile_ranks
    if steps is None:
        if ranks is not None:
            raise ConfigError("--profile-ranks says where --profile runs: add --profile")
        return None
    chosen = None
    if steps:
        match = _STEPS.fullmatch(steps)
        chosen = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= chosen[0] <= chosen[1]:
            raise ConfigError(f"--profile {steps} names no steps; use one such as 500, or a range such as 500-502")
        if chosen[1] - chosen[0] >= _MOST_STEPS:
            raise ConfigError(
                f"--profile {steps} is {chosen[1] - chosen[0] + 1} steps; a trace of more than {_MOST_STEPS} is too "
                f"large to be looked at: use a few, such as {chosen[0]}-{chosen[0] + 1}"
            )
    if ranks == "all":
        return ProfileOptions(chosen, None, all_ranks=True)
    return ProfileOptions(chosen, None if ranks is None else _parse_ranks(ranks))


def silence_profiler() -> None:
    """Keep what torch's profiler says of itself off the console. Before torch is imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def profiled_steps(options: ProfileOptions, prepared: "PreparedRun") -> ProfiledSteps | None:
    """What to profile of a prepared run; None where the steps were trained before. Raises ConfigError where none are.

    Steps that were trained before are no error: a run that is started again after a fault is told the same as at first.
    """
    plan = prepared.plan
    steps = chosen_steps(options, prepared.first_step, plan.num_steps)
    ranks = chosen_ranks(options, plan.layout)
    return ProfiledSteps(steps, ranks) if steps else None


def chosen_steps(options: ProfileOptions, first_step: int, num_steps: int) -> range:
    """The steps to profile, 0-based, of a session from `first_step` done to `num_steps`.

    By default the session's fourth and fifth: the first warms up, the second is timed, the third warms the profiler up.
    What was trained before is left out. Raises ConfigError where the run is never to have them.
    """
    if options.steps is None:
        end = min(first_step + 5, num_steps)
        return range(max(first_step, end - 2 if end - first_step > 2 else end - 1), end)
    first, last = options.steps
    if last > num_steps:
        raise ConfigError(
            f"--profile {first}{f'-{last}' if last > first else ''}: this run trains steps 1 to {num_steps}; name some "
            "of them"
        )
    return range(max(first - 1, first_step), last)


def chosen_ranks(options: ProfileOptions, layout: Layout) -> tuple[int, ...]:
    """The ranks to profile, in order. Raises ConfigError where there are no such ranks."""
    if options.all_ranks:
        return tuple(range(layout.world_size))
    if options.ranks is None:  # megatron-core numbers ranks with the pipeline outermost
        return tuple(range(0, layout.world_size, layout.world_size // layout.pipeline))
    beyond = [rank for rank in options.ranks if rank >= layout.world_size]
    if beyond:
        raise ConfigError(
            f"--profile-ranks names rank {beyond[0]}; this run has ranks 0 to {layout.world_size - 1}, or use all"
        )
    return options.ranks


def _parse_ranks(text: str) -> tuple[int, ...]:
    ranks: set[int] = set()
    for part in text.split(","):
        match = _STEPS.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--profile-ranks {text} names no ranks; use all, or some such as 0,8-11")
        ranks.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(ranks))
