"""Saving and loading checkpoints: ours beside plain sequential writes and reads of as many bytes on the same disk.

In: a model size and numbers of ranks. Out: a table, and a JSON file with every round. The ranks are processes of this
machine; each writes, or reads, its share in a file or two of its own, and a round takes as long as the slowest. Rounds
are interleaved; written files reach the disk (fsync) within the time measured, and the page cache holds none of the
bytes when a file is read. A last part trains a model of that size and says what a save costs the training around it.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machine import ROOT, command_line, commit, machine, publish, versions

SAVES = {
    "no saves": ("--checkpoint.interval_steps=0",),
    "behind training": ("--checkpoint.asynchronous=true",),
    "in place": ("--checkpoint.asynchronous=false",),
}
INTERVAL_STEPS = 4
_STEP = re.compile(r"^\s*step +([\d,]+)")
_WAITED = re.compile(r"training waited ([\d.]+) s\)")


def main() -> int:
    """Measure and report; 0 if it went well."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="checkpoint-benchmark-", dir=options.folder) as temporary:
        files = {ranks: measure_files(ranks, Path(temporary), options) for ranks in options.ranks}
        training = measure_training(Path(temporary), options)
    report = {
        "date": date.today().isoformat(),
        "command": command_line(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(("torch", "safetensors", "deepspeed")),
        "model": options.model,
        "files": files,
        "training": training,
    }
    publish(report, table(report), options.output)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="gpt3-base", help="a name that megagpt plan knows")
    made.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--folder", type=Path, help="on the disk to measure; unset: where temporary files are")
    made.add_argument("--steps", type=int, default=16, help="of each training run; a save every 4")
    made.add_argument("--dataset", type=Path, default=ROOT / "data/quickstart/corpus", help="to train on, without .bin")
    made.add_argument("--tokenizer", type=Path, default=ROOT / "data/quickstart/tokenizer.model")
    made.add_argument("--output", type=Path, help="JSON file; a .md is written beside it")
    return made


def measure_files(ranks: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every round of every writer and reader with so many ranks, as rank 0 saw it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    arguments = [str(folder), options.model, str(options.rounds)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("checkpoint_ranks.py")), *arguments],
            env={**os.environ, **place, **quiet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else None,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = processes[0].communicate()[0]
    if any(process.wait() for process in processes):
        raise SystemExit("a rank failed")
    return dict(json.loads(said.splitlines()[-1]))


def measure_training(folder: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """The same run without saves, with saves behind it, and with saves in place; None where there is no dataset."""
    if not options.dataset.with_suffix(".bin").exists():
        print(f"no {options.dataset}.bin: what training waits is not measured; bash launch/quickstart.sh makes one")
        return None
    return {name: train(folder / "run", options, extra) for name, extra in SAVES.items()}


def train(folder: Path, options: argparse.Namespace, extra: tuple[str, ...]) -> dict[str, Any]:
    """Train one rank on one core. Seconds from line to line of the log, and what the saves said of themselves."""
    command = [
        *(sys.executable, "-u", str(ROOT / "pretrain" / "pretrain_gpt.py"), options.model),
        *(f"--run.folder={folder}", f"--tokenizer.path={options.tokenizer}", f"--data.path={options.dataset}"),
        *(f"--train.steps={options.steps}", "--train.micro_batch_size=1", "--model.sequence_length=256"),
        *(
            "--train.batch_tokens=256",
            "--train.warmup_tokens=0",
            "--train.batch_ramp_tokens=0",
            "--parallel.zero_stage=1",
        ),
        *(f"--checkpoint.interval_steps={INTERVAL_STEPS}", "--checkpoint.keep=1", "--log.interval_steps=1", *extra),
    ]
    times: dict[int, float] = {}
    waited: list[float] = []
    said = []
    with subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := _STEP.match(line):
                times[int(found[1].replace(",", ""))] = time.perf_counter()
            if found := _WAITED.search(line):
                waited.append(float(found[1]))
    shutil.rmtree(folder, ignore_errors=True)
    if process.returncode:
        raise SystemExit("".join(said[-30:]))
    first = INTERVAL_STEPS  # what comes before it warms up
    seconds = {step: times[step] - times[step - 1] for step in times if step > first}
    return {"seconds_of_steps": seconds, "waited_seconds": waited}


def table(report: dict[str, Any]) -> list[str]:
    """The report as Markdown."""
    found = report["files"]
    first = next(iter(found.values()))
    computer, known = report["machine"], report["versions"]
    lines = [
        f"A checkpoint of {report['model']}: {first['bytes'] / 1e6:,.0f} MB, 12 bytes a parameter; median (least to "
        f"most) of {len(first['write']['plain'])} rounds; MB/s over all ranks; ratios: median over rounds.",
        "",
        f"{report['date']}, commit {report['commit']}, {computer['cpu']}, {computer['cores']} cores, "
        f"{computer['memory_gib']} GiB, {computer['system']}; "
        + ", ".join(f"{name} {version}" for name, version in known.items() if version),
        "",
        f"    {report['command']}",
    ]
    for kind, word in (("write", "Writing"), ("read", "Reading")):
        lines += [
            "",
            f"| {word} | " + " | ".join(f"{ranks} rank{'s' * (ranks > 1)} | / plain" for ranks in found) + " |",
        ]
        lines.append("|---|" + "---|---|" * len(found))
        for name in first[kind]:
            share = 4 if "quarter" in name else 1
            cells = [
                f"{_rates(part, kind, name, share)} | {_ratio(part, kind, name, share)}" for part in found.values()
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", _reads(found), "", _memory(found)]
    return lines + ["", *_training(report["training"])]


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count > 1)}"


def _rates(part: dict[str, Any], kind: str, name: str, share: int) -> str:
    rates = [part["bytes"] / 1e6 / share / seconds for seconds in part[kind][name]]
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"


def _ratio(part: dict[str, Any], kind: str, name: str, share: int) -> str:
    pairs = zip(part[kind][name], part[kind]["plain"], strict=True)
    return f"{statistics.median(plain / ours / share for ours, plain in pairs):.2f}"


def _reads(found: dict[str, Any]) -> str:
    """What came from the disk."""
    said = [
        f"with {_ranks(ranks)}: "
        + ", ".join(f"{name} {count / part['rank_bytes']:.2f}" for name, count in part["read_bytes"].items())
        for ranks, part in found.items()
    ]
    return "Bytes from the disk for rank 0, over the bytes it holds: " + "; ".join(said) + "."


def _memory(found: dict[str, Any]) -> str:
    one = next(iter(found.values()))
    rates = {name: one["bytes"] / 1e6 / statistics.median(seconds) for name, seconds in one["memory"].items()}
    return "In memory alone: " + ", ".join(f"{name} {rate:,.0f} MB/s" for name, rate in rates.items()) + "."


def _training(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["What training waits was not measured: there was no dataset."]
    lines = [
        f"Training it on one core, with another for the writer, a save every {INTERVAL_STEPS} steps: seconds from step "
        "to step.",
        "",
        "| saves | all steps | median step without a save | median step beside or behind a save | waited for a save |",
        "|---|---|---|---|---|",
    ]
    for name, run in found.items():
        seconds = {int(step): value for step, value in run["seconds_of_steps"].items()}
        saving = [value for step, value in seconds.items() if step % INTERVAL_STEPS == 1]
        others = [value for step, value in seconds.items() if step % INTERVAL_STEPS != 1]
        waited = statistics.median(run["waited_seconds"][:-1] or [0.0])  # the last save ends the run
        lines.append(
            f"| {name} | {sum(seconds.values()):.2f} s | {statistics.median(others):.2f} s | "
            f"{statistics.median(saving):.2f} s | {waited:.2f} s |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
