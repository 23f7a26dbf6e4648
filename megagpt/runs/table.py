"""The table of `megagpt runs`, as wide as the terminal. In: summaries. Out: text, or JSON."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from megagpt.runs.summary import CheckpointSummary, RunSummary

STATE_STYLES = {"running": "bold green", "complete": "green", "stopped": "yellow", "failed": "red", "killed": "red"}
_NAME_CHARACTERS = 16  # a name is given at least so many, where it has them
_GAP = 2


class _Column(NamedTuple):
    title: str
    text: Callable[[RunSummary], str]
    right: bool = False
    least: int = 0  # characters below which it is left out instead of cut; 0: it is never cut


def runs_table(runs: Sequence[RunSummary], root: Path, width: int) -> Table:
    """A row a run. Columns are left out from the last in importance on where `width` characters do not hold them."""
    name = _Column("run", lambda run: shown_path(run.folder, root))
    # in the order in which they stand, with their importance
    columns = [
        (1, _Column("state", lambda run: run.state)),
        (2, _Column("step", _steps, right=True)),
        (3, _Column("loss", lambda run: "–" if run.loss is None else f"{run.loss:.4f}", right=True)),
        (5, _Column("tokens/s", lambda run: shown_rate(run.tokens_per_second), right=True)),
        (4, _Column("checkpoint", lambda run: shown_checkpoint(run.checkpoint))),
        (6, _Column("restarts", lambda run: str(run.restarts), right=True)),
        (7, _Column("last reason", lambda run: run.reason or "–", least=24)),
    ]
    longest = max([len(name.title), *(len(name.text(run)) for run in runs)])
    left = width - min(longest, _NAME_CHARACTERS)
    widths: dict[str, int] = {}
    for _, column in sorted(columns, key=lambda pair: pair[0]):
        content = max([len(column.title), *(len(column.text(run)) for run in runs)])
        needed = min(content, column.least) if column.least else content
        if needed + _GAP > left:
            break
        left -= needed + _GAP
        widths[column.title] = needed
    # what is left goes to the name first, then to the column that was cut
    widths[name.title] = min(longest, _NAME_CHARACTERS) + min(left, max(0, longest - _NAME_CHARACTERS))
    left -= widths[name.title] - min(longest, _NAME_CHARACTERS)
    kept = [column for _, column in columns if column.title in widths]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    table.add_column(name.title, no_wrap=True, overflow="ellipsis", width=min(width, widths[name.title]))
    for column in kept:
        wide = widths[column.title] + (left if column.least else 0)
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=justify, no_wrap=True, overflow="ellipsis", width=wide)
    for run in runs:
        style = STATE_STYLES.get(run.state, "")
        cells = [Text(column.text(run), style if column.title == "state" else "") for column in kept]
        table.add_row(Text(name.text(run)), *cells)
    return table


def count_line(runs: Sequence[RunSummary]) -> str:
    """`3 runs: 1 running, 2 complete`."""
    counts = Counter(run.state for run in runs)
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}: " + ", ".join(
        f"{counts[state]} {state}" for state in [*STATE_STYLES, "unknown"] if counts[state]
    )


def runs_json(runs: Sequence[RunSummary]) -> str:
    """All runs as a JSON list, the last active first."""
    return json.dumps([_values(run) for run in runs], indent=2, ensure_ascii=False)


def shown_path(folder: Path, root: Path) -> str:
    """A run folder as a person names it from `root`; in full where it lies elsewhere."""
    relative = os.path.relpath(folder, root)
    return os.path.abspath(folder) if relative.startswith("..") else relative


def shown_rate(rate: float | None) -> str:
    """`8,412`, with one more digit below ten."""
    return "–" if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def shown_age(seconds: float) -> str:
    """`40 s`, `12 min`, `5 h` or `3 days`."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < length * most:
            return f"{max(0, seconds) / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def shown_checkpoint(checkpoint: CheckpointSummary | None) -> str:
    """`4,000 (12 min ago)`, and that it is not whole."""
    if checkpoint is None:
        return "none"
    age = f"{checkpoint.step:,} ({shown_age(time.time() - checkpoint.written)} ago)"
    return f"{age} not whole" if checkpoint.problem else age


def _steps(run: RunSummary) -> str:
    if run.step is None:
        return "–"
    return f"{run.step:,}" + (f"/{run.steps:,}" if run.steps is not None else "")


def _values(run: RunSummary) -> dict[str, Any]:
    checkpoint = run.checkpoint
    return {
        "folder": os.path.abspath(run.folder),
        "state": run.state,
        "step": run.step,
        "steps": run.steps,
        "loss": run.loss,
        "tokens_per_second": run.tokens_per_second,
        "eta_seconds": run.eta_seconds,
        "checkpoint": checkpoint
        and {"step": checkpoint.step, "written": checkpoint.written, "problem": checkpoint.problem},
        "restarts": run.restarts,
        "reason": run.reason,
        "active": run.active,
    }
