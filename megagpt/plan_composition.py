"""Which mechanisms of parallelism and precision work together, asked of the plan itself: the table of docs/layouts.md.

In: nothing but the plan's rules. Out: a Markdown table of every pair, with the plan's own reason where it refuses one.
`python -m megagpt.plan_composition` writes it into docs/layouts.md. It knows no rule of its own.
"""

import re
import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from megagpt.config_file import load_config
from megagpt.errors import ConfigError
from megagpt.plan import make_plan

PAGE = Path(__file__).resolve().parents[1] / "docs" / "layouts.md"
_BEGIN = "<!-- begin: written by python -m megagpt.plan_composition -->"
_END = "<!-- end -->"
_RANKS = 8
_BASE = {
    "model.num_layers": "8",
    "model.num_heads": "8",
    "model.hidden_size": "64",
    "model.sequence_length": "64",
    "model.vocab_size": "1000",
    "train.batch_tokens": "2048",
    "train.steps": "10",
    "train.warmup_tokens": "0",
    "train.precision": "fp32",
    "parallel.zero_stage": "1",
}


class Mechanism(NamedTuple):
    """A way to run. Of mechanisms on one axis a run has one; `needs` are set where the other of a pair says nothing."""

    name: str
    axis: str
    sets: Mapping[str, str]
    needs: Mapping[str, str] = MappingProxyType({})


_PIPELINE = {"parallel.pipeline": "2"}
_ZERO_3 = {"parallel.zero_stage": "3"}
MECHANISMS = (
    Mechanism("tensor", "tensor", {"parallel.tensor": "2"}),
    Mechanism("sequence parallel", "sequence", {"parallel.sequence_parallel": "true"}, {"parallel.tensor": "2"}),
    Mechanism("context", "context", {"parallel.context": "2"}),
    Mechanism("pipeline, 1F1B", "schedule", _PIPELINE),
    Mechanism("pipeline, interleaved", "schedule", {**_PIPELINE, "parallel.virtual_stages": "2"}),
    Mechanism("uneven stages", "stages", {"model.num_layers": "7"}, _PIPELINE),
    *(Mechanism(f"ZeRO {stage}", "zero", {"parallel.zero_stage": str(stage)}) for stage in range(4)),
    Mechanism("optimizer in host memory", "optimizer", {"parallel.offload_optimizer": "cpu"}),
    Mechanism("parameters in host memory", "parameters", {"parallel.offload_parameters": "cpu"}, _ZERO_3),
    Mechanism(
        "parameters in files",
        "parameters",
        {"parallel.offload_parameters": "nvme", "parallel.nvme_folder": "nvme"},
        _ZERO_3,
    ),
    Mechanism("recompute attention", "recompute", {"train.recompute": "selective"}),
    Mechanism("recompute layers", "recompute", {"train.recompute": "full"}),
    Mechanism("recompute every 2nd layer", "recompute", {"train.recompute": "full", "train.recompute_every": "2"}),
    Mechanism("batch ramp", "ramp", {"train.batch_ramp_tokens": "20480", "train.batch_ramp_start_tokens": "512"}),
    *(Mechanism(precision, "precision", {"train.precision": precision}) for precision in ("fp32", "bf16", "fp16")),
    Mechanism("float8", "float8", {"train.fp8": "true"}, {"train.precision": "bf16"}),
    Mechanism("documents kept apart", "documents", {"data.separate_documents": "true"}),
)


def refusals(*mechanisms: Mechanism) -> list[str]:
    """The plan's reasons against these mechanisms together, without where each value came from; empty: they work."""
    values = dict(_BASE)
    for mechanism in mechanisms:
        values |= mechanism.needs
    for mechanism in mechanisms:
        values |= mechanism.sets
    try:
        make_plan(load_config(None, [f"--{key}={value}" for key, value in values.items()]), _RANKS, None)
    except ConfigError as error:
        return [re.sub(r" \((command line|default)\)", "", problem) for problem in error.problems]
    return []


def composition_table() -> str:
    """The table and its notes in Markdown, one row and one column a mechanism, the part below the diagonal."""
    notes: dict[str, int] = {}
    cells: dict[tuple[str, str], str] = {}
    for first, second in combinations(MECHANISMS, 2):
        if first.axis == second.axis:
            cells[first.name, second.name] = "·"
            continue
        numbers = [notes.setdefault(reason, len(notes) + 1) for reason in refusals(first, second)]
        cells[first.name, second.name] = f"no {', '.join(map(str, numbers))}" if numbers else "✓"
    columns = MECHANISMS[:-1]
    lines = [
        "|  |  | " + " | ".join(str(number) for number in range(1, len(columns) + 1)) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for row, mechanism in enumerate(MECHANISMS):
        marks = [cells[other.name, mechanism.name] if column < row else "" for column, other in enumerate(columns)]
        lines.append(f"| {row + 1} | {mechanism.name} | " + " | ".join(marks) + " |")
    listed = [f"{number}. {reason}" for reason, number in notes.items()]
    return "\n".join([*lines, "", "Why not, in the plan's own words:", "", *listed])


def page_with_table(text: str) -> str:
    """The page with its table made anew. Raises ConfigError where the marks that enclose it are missing."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ConfigError(f"the page has no lines {_BEGIN} and {_END}; put them where the table belongs")
    return f"{before}{_BEGIN}\n\n{composition_table()}\n\n{_END}{after}"


def main() -> int:
    """Write the table into docs/layouts.md of this repository."""
    try:
        PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    except (ConfigError, OSError) as error:
        print(f"error: {PAGE}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
