"""The page of `megagpt runs show`: what a run trains, its sessions, checkpoints and losses. In: a folder. Out: text."""

import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.text import Text

from megagpt.runs.summary import CheckpointSummary, RunSummary, checkpoints_of, summarise
from megagpt.runs.table import STATE_STYLES, shown_age, shown_rate
from megagpt.training.run_environment import ENVIRONMENT_FILE
from megagpt.training.run_files import read_json, shown_time
from megagpt.training.run_record import Session
from megagpt.training.run_state import read_state, step_records

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BARS = "▁▂▃▄▅▆▇█"
_LINE_BARS = 48
_MOST_SESSIONS = 20
_LABEL = 15


def describe_run(folder: Path) -> Text:
    """A page about a run."""
    run = summarise(folder)
    page = Text()
    _row(page, "run", str(folder))
    page.append(f"{'state':{_LABEL}}")
    page.append(run.state, STATE_STYLES.get(run.state, ""))
    page.append(f"{_progress(run)}\n")
    for label, line in [*_configuration(folder), *_environment(folder)]:
        _row(page, label, line)
    for label, line in _measured(step_records(folder)):
        _row(page, label, line)
    _list(page, f"sessions ({len(run.sessions)})", _sessions(run))
    _list(page, "checkpoints", [_checkpoint_line(checkpoint, run) for checkpoint in checkpoints_of(folder)])
    page.rstrip()
    return page


def sparkline(values: Sequence[float], width: int = _LINE_BARS) -> str:
    """Values as bars, from the lowest to the highest; each bar is the mean of as many as fall together."""
    if not values:
        return ""
    width = min(width, len(values))
    means = []
    for bar in range(width):
        part = values[bar * len(values) // width : (bar + 1) * len(values) // width]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _progress(run: RunSummary) -> str:
    if run.step is None:
        return ""
    text = f", step {run.step:,}" + (f" of {run.steps:,}" if run.steps is not None else "")
    if run.loss is not None:
        text += f", loss {run.loss:.4f}"
    if run.tokens_per_second is not None:
        text += f", {shown_rate(run.tokens_per_second)} tokens/s"
    if run.eta_seconds is not None:
        text += f", ETA {timedelta(seconds=round(run.eta_seconds))}"
    return text + (f"; {run.reason}" if run.reason and run.reason != run.state else "")


def _configuration(folder: Path) -> list[tuple[str, str]]:
    """What the run trains, from its config.toml."""
    try:
        config: dict[str, Any] = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        model, train, parallel = config["model"], config["train"], config["parallel"]
        data = config["data"]
        length = f"{train['steps']:,} steps" if "steps" in train else f"{train['tokens']:,} tokens"
        corpora = [corpus["path"] for corpus in data.get("corpora", [])] or [str(data.get("path"))]
        return [
            (
                "model",
                f"{model['name']}: {model['num_layers']} layers, {model['num_heads']} heads, hidden "
                f"{model['hidden_size']}, context {model['sequence_length']}",
            ),
            (
                "training",
                f"{length}, {train['batch_tokens']:,} tokens a step, {train['precision']}, lr {train['lr']:g} "
                f"{train['lr_schedule']}, seed {config['run']['seed']}",
            ),
            ("data", ", ".join(corpora)),
            (
                "layout",
                f"tensor {parallel['tensor']}, pipeline {parallel['pipeline']}, context {parallel['context']}, "
                f"ZeRO {parallel['zero_stage']}",
            ),
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [("configuration", f"config.toml cannot be read ({type(error).__name__}: {error})")]


def _environment(folder: Path) -> list[tuple[str, str]]:
    """Versions and machines of the last session, from its environment.json."""
    found = read_json(folder / ENVIRONMENT_FILE)
    try:
        dirty = "-dirty" if found["dirty"] else ""
        versions = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "deepspeed", "megatron-core"))
        hosts = "; ".join(
            f"{host}: {_ranks(len(values['ranks']))} on {', '.join(values['devices'])}"
            for host, values in found["hosts"].items()
        )
        commit = f" at {found['commit'][:12]}{dirty}" if found["commit"] else ""
        return [
            ("software", f"megagpt {found['megagpt']}{commit}, {versions}, Python {found['python']}"),
            ("machines", hosts),
            ("command", found["command"]),
        ]
    except (KeyError, TypeError, AttributeError):
        return []


def _measured(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The course of the losses."""
    rows = []
    for label, key in (("loss", "loss"), ("validation", "validation_loss")):
        points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), (int, float)) and "corpus" not in r]
        if points:
            steps, losses = [step for step, _ in points], [float(loss) for _, loss in points]
            line = sparkline(losses)
            course = f"{losses[0]:.4f} after step {steps[0]:,} → {losses[-1]:.4f} after step {steps[-1]:,}"
            rows.append((label, f"{line}  {course}"))
    return rows


def _sessions(run: RunSummary) -> list[str]:
    lines = []
    if len(run.sessions) > _MOST_SESSIONS:
        lines.append(f"… {len(run.sessions) - _MOST_SESSIONS} before these")
    for session in run.sessions[-_MOST_SESSIONS:]:
        start, end = session
        is_last = session is run.sessions[-1]
        after = end.last_step if end else (run.step if is_last and run.step is not None else start.first_step)
        ended = end.reason if end else (run.state if is_last else "killed")
        duration = _duration(run, session, is_last)
        lines.append(
            f"{start.session:>3}  {shown_time(start.time)}  {duration:>8}  steps {start.first_step:,} to {after:,}  "
            f"{_ranks(start.ranks)} on {start.host}{f', {start.job}' if start.job else ''}: {ended}"
        )
        lines += [f"     changed: {change}" for change in start.changed]
        if start.allow_data_change:
            lines.append("     with --allow-data-change")
    return lines


def _duration(run: RunSummary, session: Session, is_last: bool) -> str:
    """How long a session took; of one that was killed, as long as it was heard of."""
    state = read_state(run.folder) if is_last and session.end is None else None
    until = session.end.time if session.end else (state.time if state else None)
    try:
        assert until is not None
        return str(datetime.fromisoformat(until) - datetime.fromisoformat(session.start.time))
    except (AssertionError, ValueError, TypeError):
        return "?"


def _checkpoint_line(checkpoint: CheckpointSummary, run: RunSummary) -> str:
    state = f"not whole: {checkpoint.problem}" if checkpoint.problem else "whole"
    latest = "  (latest)" if run.checkpoint is not None and checkpoint.step == run.checkpoint.step else ""
    return f"step {checkpoint.step:,}  {shown_age(time.time() - checkpoint.written)} ago  {state}{latest}"


def _ranks(number: int) -> str:
    return f"{number} rank{'s' if number != 1 else ''}"


def _row(page: Text, label: str, line: str) -> None:
    page.append(f"{label:{_LABEL}}{line}\n")


def _list(page: Text, title: str, lines: Sequence[str]) -> None:
    page.append(f"{title}\n", "bold")
    for line in lines or ["none"]:
        page.append(f"  {line}\n")
