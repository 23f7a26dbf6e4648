"""Runs cases in interleaved rounds and keeps what was measured. In: plans. Out: measurements, comparisons, commands."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from corpus_peers.cases import BUILDER, FORMAT, Case
from corpus_peers.contenders import HERE, OURS, Job
from corpus_peers.inputs import remove_outputs
from corpus_peers.process import CommandFailed, Run, run
from corpus_peers.results import Key, Measured, key


class Plan(NamedTuple):
    """Cases run in turn, `rounds` times over."""

    cases: Sequence[Case]
    rounds: int


class Bench:
    """Runs plans and keeps what was measured. `shown` hides the folders of this machine."""

    def __init__(self, work: Path, timeout_seconds: float, hidden: Mapping[str, str]) -> None:
        self.measured: list[Measured] = []
        self.identical: dict[Key, str] = {}
        self.failed: dict[Key, str] = {}
        self.commands: dict[str, str] = {}
        self._ours: dict[str, tuple[Path, Path]] = {}  # input -> our dataset, moved to where it is kept
        self._work = work
        self._timeout_seconds = timeout_seconds
        self._hidden = hidden

    def run(self, plan: Plan) -> None:
        """Every case in every round: A B C, A B C."""
        for round_number in range(plan.rounds):
            for case in plan.cases:
                if key(case) not in self.failed:
                    self._run_case(case, round_number)

    def ours_bytes(self, name: str) -> int:
        """Size of our dataset of an input, 0 where ours has not run on it."""
        return sum(path.stat().st_size for path in self._ours.get(name, ()))

    def shown(self, text: str) -> str:
        """`text` with placeholders for this machine's folders."""
        for path, name in self._hidden.items():
            text = text.replace(path, name)
        return text

    def _run_case(self, case: Case, round_number: int) -> None:
        folder = self._work / "output"
        remove_outputs(folder)
        job = case.job(folder)
        environment = _environment() | dict(job.environment)
        try:
            result = run(job.command, environment, job.folder, self._work / "log.txt", self._timeout_seconds)
        except CommandFailed as error:
            if case.name == OURS:
                raise
            self.failed[key(case)] = self.shown(str(error))
            print(f"{case.name} ({case.workers}) failed and is left out: {error}", file=sys.stderr, flush=True)
            return
        output_bytes = sum(path.stat().st_size for files in job.outputs for path in files)
        self.measured.append(Measured(case, round_number, result, output_bytes))
        print(_line(case, round_number, result), file=sys.stderr, flush=True)
        if round_number == 0:
            prefix = "".join(f"{name}={value} " for name, value in sorted(job.environment.items()))
            self.commands[" / ".join(map(str, key(case)))] = self.shown(prefix + shlex.join(job.command))
            if case.kind in (BUILDER, FORMAT) and job.outputs:
                self.identical[key(case)] = self._compare(case, job)

    def _compare(self, case: Case, job: Job) -> str:
        ours = self._ours.get(case.corpus.name)
        if ours is None:
            assert case.name == OURS, case.name
            kept = self._work / f"{case.corpus.name}-ours"
            ours = Path(f"{kept}.bin"), Path(f"{kept}.idx")
            for source, target in zip(job.outputs[0], ours, strict=True):
                shutil.move(source, target)
            self._ours[case.corpus.name] = ours
            return "(ours)"
        files = [[str(path) for path in ours], [[str(path) for path in shard] for shard in job.outputs]]
        command = [sys.executable, str(HERE / "compare.py"), json.dumps(files)]
        return in_words(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def in_words(found: Mapping[str, object]) -> str:
    """What compare.py found, for a table."""
    if found["bin_identical"] and found["idx_identical"]:
        return f"yes ({found['joined_shards']} files joined)" if "joined_shards" in found else "yes"
    details = [f"{name} {value}" for name, value in found.items() if value is not True]
    return "no: " + ", ".join(details).replace("_", " ")


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _line(case: Case, round_number: int, result: Run) -> str:
    where = f"round {round_number + 1}  {case.corpus.name:8} {case.name} ({case.workers})"
    return f"{where:70} {result.seconds:9.3f} s  {result.peak_memory_mb:7.0f} MB"
