"""What launch/slurm.sbatch asks between starts: `python -m megagpt.launch.job begin|after CONFIG …`.

`begin` notes a start, prints the folder for its logs, and fails where starts bring no progress. `after` prints what to
do next as a word, and why to stderr. All starts of a job are noted in RUN/logs/slurm-JOB/starts.jsonl.
"""

import argparse
import json
import os
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from megagpt.checkpoint.commit import read_latest
from megagpt.cli import status_of
from megagpt.config_cli import CommandParser, split_arguments
from megagpt.config_file import load_config
from megagpt.errors import TrainingError
from megagpt.launch.agent import read_reports
from megagpt.launch.check import add_training_options
from megagpt.launch.restarts import decide, starts_without_progress
from megagpt.training.run_files import append_line
from megagpt.training.run_record import COMPLETE, read_sessions

_STARTS = "starts.jsonl"


class Start(NamedTuple):
    """One start of all ranks: the folder of its logs, and the newest checkpoint that it found ("" for none).

    `new_job`: SLURM ran the job for the first time; numbers of jobs come back.
    """

    logs: str
    checkpoint: str
    new_job: bool


def main(argv: list[str]) -> int:
    """Run `begin` or `after`; 2 after a user's error, which is printed."""
    parser = CommandParser(prog="megagpt.launch.job", allow_abbrev=False)
    parser.add_argument("command", choices=["begin", "after"])
    parser.add_argument("config")
    parser.add_argument("--new-job", action="store_true")
    parser.add_argument("--most-restarts", type=int, default=3)
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--asked-to", choices=["", "requeue", "stop"], default="")
    add_training_options(parser)
    own, config_arguments = split_arguments(argv)
    options = parser.parse_args(own)
    run = Path(load_config(options.config, config_arguments).config.run.folder)
    return _begin(run, options) if options.command == "begin" else _after(run, options)


def _begin(run: Path, options: argparse.Namespace) -> int:
    folder = job_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    logs = next(path for number in count(1) if not (path := folder / f"start-{number}").exists())
    start = Start(logs.name, newest_checkpoint(run), options.new_job)
    append_line(folder / _STARTS, json.dumps(start._asdict()))
    starts = read_starts(folder)
    fruitless = starts_without_progress([start.checkpoint for start in starts])
    if fruitless > options.most_restarts + 1:
        raise TrainingError(
            f"the last {fruitless - 1} starts found {start.checkpoint or 'no checkpoint'} and saved no newer one; look "
            f"at their logs in {folder}, and submit the job again when the reason is gone (MOST_RESTARTS=N allows N "
            "restarts)"
        )
    logs.mkdir()
    print(logs)
    return 0


def _after(run: Path, options: argparse.Namespace) -> int:
    folder = job_folder(run)
    reports = read_reports(folder / read_starts(folder)[-1].logs)
    for report in reports:
        for end in report.ends:
            what = f"signal {-end.status}" if end.status < 0 else f"status {end.status}"
            print(f"rank {end.rank} on {report.node} ended with {what}", file=sys.stderr)
    statuses = [end.status for report in reports for end in report.ends]
    decision = decide(statuses, options.status, bool(options.asked_to), is_complete(run))
    print(decision.reason, file=sys.stderr)
    print(decision.action)
    return 0


def job_folder(run: Path) -> Path:
    """Where a job's logs are."""
    return run / "logs" / f"slurm-{os.environ['SLURM_JOB_ID']}"


def read_starts(folder: Path) -> list[Start]:
    """The starts of this job that were noted, oldest first. Lines that a crash cut short are passed over."""
    path = folder / _STARTS
    starts = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            starts.append(Start(**json.loads(line)))
    first = max((number for number, start in enumerate(starts) if start.new_job), default=0)
    return starts[first:]


def newest_checkpoint(run: Path) -> str:
    """Name of the run's newest checkpoint; "" where there is none."""
    return read_latest(run / "checkpoints") or ""


def is_complete(run: Path) -> bool:
    """Whether the run's last session came to the end of the run."""
    sessions = read_sessions(run)
    return bool(sessions) and sessions[-1].end is not None and sessions[-1].end.reason == COMPLETE


if __name__ == "__main__":
    sys.exit(status_of(lambda: main(sys.argv[1:])))
