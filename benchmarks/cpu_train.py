"""Training gpt3-base on the CPU: ours beside a nanoGPT-style model, Hugging Face's GPT-2, and the floor of the machine.

Every contender is a process that trains all the time; all but one are stopped (SIGSTOP), so that rounds are interleaved
without starting anything again: what disturbs the machine meets all of them. A step counts from line to line of its
output, the one that was stopped in its middle not. Ours is `megagpt train` with its data path, loop and log; the peers
read random numbers.
"""

import argparse
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_data import make_data
from gpu_peers import Shape
from machine import ROOT, command_line, commit, machine, publish, versions

BASE = Shape(layers=12, heads=12, hidden=768, length=0, vocabulary=32_000)  # gpt3-base; each case has its length
SMALL = Shape(layers=2, heads=2, hidden=64, length=0, vocabulary=16_384)
CASES = {"bf16 4x256": ("bf16", 256, 4), "bf16 1x1024": ("bf16", 1024, 1)}
CASES |= {"fp32 4x256": ("fp32", 256, 4), "fp32 1x1024": ("fp32", 1024, 1)}
PEERS = ("nanogpt-eager", "nanogpt-fused", "nanogpt-compiled", "huggingface-fused", "huggingface-compiled")
WITHOUT_MASTERS = "nanogpt-compiled, bf16 weights"
_STEP = re.compile(r"^\s*step +([\d,]+)")
_PARTS = re.compile(r"(products|attention|update) ([\d.]+)")


class Contender:
    """Processes that train, a rank each; they run only within `warm_up` and `round`, and the first one speaks."""

    def __init__(self, name: str, command: list[str], threads: int = 1, ranks: int = 1) -> None:
        self.name, self.command, self.threads, self.ranks = name, command, threads, ranks
        self.seconds: list[list[float]] = []
        self.parts: list[dict[str, float]] = []
        self._said: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        """Start every rank."""
        quiet = {"OMP_NUM_THREADS": str(self.threads), "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(self.ranks)}
        for rank in range(self.ranks):
            own = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} if self.ranks > 1 else {}
            started = subprocess.Popen(
                self.command,
                env={**os.environ, **quiet, **own},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self._processes.append(started)

    def warm_up(self, steps: int) -> None:
        """Start, and run a few steps, which compile and allocate; then stop."""
        self.start()
        for _ in range(steps):
            self._next_step()
        self._signal(signal.SIGSTOP)

    def round(self, steps: int) -> None:
        """Measure so many steps."""
        self._signal(signal.SIGCONT)
        self._next_step()  # was stopped in its middle
        times = [time.perf_counter()]
        for _ in range(steps):
            line = self._next_step()
            times.append(time.perf_counter())
            if found := _PARTS.findall(line):
                self.parts.append({name: float(value) for name, value in found})
        self._signal(signal.SIGSTOP)
        self.seconds.append([after - before for before, after in pairwise(times)])

    def memory_gib(self) -> float:
        """Resident memory of its largest process now; ours keeps what it has freed."""
        found = [int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) for process in self._processes]
        return max(found) * os.sysconf("SC_PAGE_SIZE") / 2**30

    def end(self) -> None:
        """Leave nothing running; also where it has not been started."""
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _next_step(self) -> str:
        assert self._processes[0].stdout is not None
        for line in self._processes[0].stdout:
            self._said.append(line)
            if _STEP.match(line):
                return line
        raise SystemExit(f"{self.name} ended:\n" + "".join(self._said[-30:]))

    def _signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ours(
    precision: str, length: int, micro_batch: int, ranks: int, options: argparse.Namespace, folder: str
) -> list[str]:
    """`megagpt train` on so many ranks that share the batch."""
    settings = {
        "run.folder": f"{folder}/{precision}-{length}-{ranks}",
        "tokenizer.path": f"{folder}/data/tokenizer.json",
        "data.path": f"{folder}/data/corpus",
        "model.vocab_size": options.shape.vocabulary,
        "model.num_layers": options.shape.layers,
        "model.num_heads": options.shape.heads,
        "model.hidden_size": options.shape.hidden,
        "model.sequence_length": length,
        "train.precision": precision,
        "train.steps": 1_000_000,
        "train.micro_batch_size": micro_batch // ranks,
        "train.batch_tokens": micro_batch * length,
        "train.batch_ramp_tokens": 0,
        "train.warmup_tokens": 10**6,
        "parallel.zero_stage": 1,
        "checkpoint.interval_steps": 0,
        "evaluation.interval_steps": 0,
        "evaluation.max_batches": 1,
    }
    program = [str(ROOT / "pretrain" / "pretrain_gpt.py"), "gpt3-base"]
    return [sys.executable, *program, *(f"--{name}={value}" for name, value in settings.items())]


def contenders(case: str, options: argparse.Namespace, folder: str) -> list[Contender]:
    """All of a case, on one core each."""
    precision, length, micro_batch = CASES[case]
    other = str(Path(__file__).with_name("cpu_contender.py"))
    made = [Contender("ours", ours(precision, length, micro_batch, 1, options, folder))]
    kinds = {name: (name, precision) for name in options.peers}
    if precision == "bf16" and "nanogpt-compiled" in options.peers:
        kinds[WITHOUT_MASTERS] = ("nanogpt-compiled", "bf16-weights")
    kinds["floor"] = ("floor", precision)
    for name, (kind, numbers) in kinds.items():
        sizes = map(str, options.shape._replace(length=length))
        made.append(Contender(name, [sys.executable, other, kind, numbers, str(micro_batch), *sizes]))
    return made


def measure(made: list[Contender], options: argparse.Namespace) -> dict[str, Any]:
    """Interleaved rounds, once all are warm; every step's seconds."""
    try:
        for contender in made:  # one after the other: compiling takes minutes
            contender.warm_up(3)
        for contender in made:
            contender.round(1)
        for contender in made:
            contender.seconds.clear()
            contender.parts.clear()
        for _ in range(options.rounds):
            for contender in made:
                contender.round(options.steps)
        return {
            contender.name: {
                "seconds": contender.seconds,
                "parts": contender.parts,
                "memory_gib": round(contender.memory_gib(), 2),
            }
            for contender in made
        }
    finally:
        for contender in made:
            contender.end()


def measure_ranks(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """The same batch on two cores: one rank with two threads, two ranks with one."""
    precision, length, micro_batch = CASES["bf16 4x256"]
    made = [
        Contender(f"{ranks} × {threads}", ours(precision, length, micro_batch, ranks, options, folder), threads, ranks)
        for ranks, threads in ((1, 2), (2, 1))
    ]
    return measure(made, options)


def per_step(found: dict[str, Any], name: str) -> list[float]:
    """Median seconds of a step, of each round."""
    return [statistics.median(steps) for steps in found[name]["seconds"]]


def ratio(found: dict[str, Any], name: str) -> float:
    """How many times as long as ours a contender takes: median over rounds."""
    pairs = zip(per_step(found, name), per_step(found, "ours"), strict=True)
    return statistics.median(other / own for other, own in pairs)


def best_peer(found: dict[str, Any]) -> str:
    """The fastest that trains with fp32 masters, as ours does."""
    return min((name for name in found if name in PEERS), key=lambda name: statistics.median(per_step(found, name)))


def table(report: dict[str, Any]) -> list[str]:
    """The report as Markdown."""
    computer = report["machine"]
    lines = [
        f"{report['model']}, 1,024 tokens and one update a step. Median (least to most) over rounds "
        "of a round's median step; ratios are medians over rounds.",
        "",
        f"{report['date']}, commit {report['commit']}, {computer['cpu']}, {computer['cores']} cores, "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        "",
        f"    {report['command']}",
    ]
    for case, found in report["cases"].items():
        tokens = CASES[case][1] * CASES[case][2]
        lines += ["", f"| {case}, one core | tokens/s | / ours | memory |", "|---|---|---|---|"]
        for name in found:
            rates = [tokens / seconds for seconds in per_step(found, name)]
            spread = f"{statistics.median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})"
            times = "1" if name == "ours" else f"{1 / ratio(found, name):.2f}"
            lines.append(f"| {name} | {spread} | {times} | {found[name]['memory_gib']:.1f} GiB |")
        lines += ["", summary(case, found)]
    if ranks := report["ranks"]:
        lines += ["", "| bf16 4x256, two cores: ranks × threads | tokens/s |", "|---|---|"]
        lines += [
            f"| {name} | {statistics.median(1024 / seconds for seconds in per_step(ranks, name)):.0f} |"
            for name in ranks
        ]
    return lines


def summary(case: str, found: dict[str, Any]) -> str:
    """Ours in two ratios, and what the floor is made of."""
    said = f"{case}: "
    if any(name in PEERS for name in found):
        said += f"{ratio(found, best_peer(found)):.2f} times the best peer ({best_peer(found)}), "
    said += f"{ratio(found, 'floor'):.0%} of the floor"
    parts = {
        key: statistics.median(part[key] for part in found["floor"]["parts"]) for key in found["floor"]["parts"][0]
    }
    return said + " (seconds: " + ", ".join(f"{key} {value:.2f}" for key, value in parts.items()) + ")."


def describe(shape: Shape) -> str:
    """The model in words."""
    name = "gpt3-base" if shape == BASE else "a tiny model"
    return f"{name}: {shape.layers} layers, {shape.heads} heads, width {shape.hidden}, {shape.vocabulary:,} tokens"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--small", dest="shape", action="store_const", const=SMALL, default=BASE, help="a tiny model")
    made.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    made.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--steps", type=int, default=2, help="of each contender in each round")
    made.add_argument("--ranks", action=argparse.BooleanOptionalAction, default=True, help="ranks against threads")
    made.add_argument("--output", type=Path, help="JSON file; a .md is written beside it")
    return made


def main() -> int:
    """Measure and report; 0 if it went well."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="cpu-benchmark-") as folder:
        make_data(Path(folder) / "data", most_bytes=20_000_000)
        cases = {case: measure(contenders(case, options, folder), options) for case in options.cases}
        ranks = measure_ranks(options, folder) if options.ranks else {}
    report = {
        "date": date.today().isoformat(),
        "command": command_line(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(("torch", "deepspeed", "megatron-core", "transformers")),
        "model": describe(options.shape),
        "cases": cases,
        "ranks": ranks,
    }
    publish(report, table(report), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
