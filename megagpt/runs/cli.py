"""`megagpt runs [FOLDER...]`: a table of runs. `megagpt runs show RUN`: a page about one."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from megagpt.errors import ConfigError
from megagpt.runs.find import find_runs, is_run
from megagpt.runs.page import describe_run
from megagpt.runs.summary import summarise
from megagpt.runs.table import count_line, runs_json, runs_table

_DEFAULT_FOLDER = "runs"
_PIPE_WIDTH = 200


def main(argv: list[str]) -> int:
    """Run the verb. Raises ConfigError where a folder is none, or no run's."""
    if argv[:1] == ["show"]:
        return _show(argv[1:])
    parser = argparse.ArgumentParser(
        prog="megagpt runs",
        description="Lists runs with their state, the last active first. `megagpt runs show RUN` is a page about one.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="run folders, and folders that hold some at any depth (default: ./runs)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    options = parser.parse_args(argv)
    roots = options.folders or [Path(_DEFAULT_FOLDER)]
    found = find_runs(roots)
    runs = sorted((summarise(folder) for folder in found.folders), key=lambda run: -run.active)
    for line in found.unreadable:
        print(f"warning: {line}", file=sys.stderr)
    if options.json:
        print(runs_json(runs))
        return 0
    if not runs:
        print(f"no runs in {', '.join(map(str, roots))}")
        return 0
    console = _console()
    console.print(runs_table(runs, Path.cwd(), console.width))
    console.print(count_line(runs), style="dim", highlight=False)
    return 0


def _show(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="megagpt runs show",
        description="Shows one run: what it trains, its sessions and why they ended, its checkpoints and its loss.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    folder: Path = parser.parse_args(argv).run
    if not folder.is_dir() or not is_run({path.name for path in folder.iterdir()}):
        raise ConfigError(f"{folder} is no run folder; `megagpt runs FOLDER` lists those below a folder")
    _console().print(describe_run(folder), highlight=False, soft_wrap=True)
    return 0


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
