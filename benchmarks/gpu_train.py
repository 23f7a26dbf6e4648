"""Training speed on one GPU: ours in bf16 and fp8, a plain nanoGPT-style model and Hugging Face's GPT-2, in one run.

In: pieces to run (all, if none is named), a folder for results. Out: FOLDER/raw.jsonl, a line a run as soon as it ends,
and the table FOLDER/gpu-train.md. Called again, it goes on with what raw.jsonl lacks; it starts nothing that would not
end within --seconds. Every run is a process of its own (gpu_worker.py).
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_cases import (
    CURVE_BATCH_TOKENS,
    CURVE_STEPS,
    FP8_SIZES,
    LARGEST_MICRO_BATCH,
    PEERS,
    SIZES,
    Case,
    Memory,
    layers_that_fit,
    micro_batches_to_try,
    plan_of,
    settings_that_fit,
)
from gpu_data import make_data
from gpu_report import read_raw, report_lines
from machine import command_line, commit, machine, versions

WORKER = Path(__file__).with_name("gpu_worker.py")
CURVES = {"curve-bf16": (), "curve-fp8": ("--train.fp8=true",), "curve-seed": ("--run.seed=4321",)}
OURS = {"": (), "fp8": ("--train.fp8=true",), "compile": ("--train.compile=true",)}
LEAST_SECONDS = 60  # no run is started with less left
_SMALL = """\
[model]
name = "small"
num_layers = 2
num_heads = 2
hidden_size = 32
sequence_length = 64
vocab_size = 16100
"""


def main() -> int:
    """Run what is missing; 0 if all that was asked for is there, 3 if time ran out, 1 if a run failed."""
    options = parser().parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.report:
        print_report(options.folder)
        return 0
    suite = Suite(options)
    status = 0
    for piece in options.pieces or suite.pieces():
        status = max(status, suite.run_piece(piece))
    print_report(options.folder)
    return status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "pieces", nargs="*", help="ceiling, SIZE, SIZE-fp8, SIZE-compile, SIZE-nanogpt, SIZE-huggingface, curve-..."
    )
    made.add_argument("--folder", type=Path, required=True, help="for results")
    made.add_argument("--data", type=Path, help="folder with corpus and tokenizer.json; unset: made in FOLDER/data")
    made.add_argument("--seconds", type=float, default=1e9, help="that all of this may take")
    made.add_argument("--steps", type=int, default=8, help="of each run; three warm up, the last one is profiled")
    made.add_argument("--most-micro-batches", type=int, default=2, help="sizes of the micro-batch that are compared")
    made.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of our configuration, for all runs")
    made.add_argument("--small", action="store_true", help="a tiny model, nothing compiled: to see that it works")
    made.add_argument("--report", action="store_true", help="only print the table of what is there")
    return made


class Suite:
    """The runs of one call."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.started = options, time.monotonic()
        self.raw = options.folder / "raw.jsonl"
        self.data: Path = options.data or options.folder / "data"
        self.memory, self.device = find_device()
        self.sizes, self.most_micro_batch = list(SIZES), LARGEST_MICRO_BATCH
        self.extra: tuple[str, ...] = tuple(f"--{setting}" for setting in options.set)
        if options.small:
            (options.folder / "small.toml").write_text(_SMALL, encoding="utf-8")
            self.sizes, self.most_micro_batch = [str(options.folder / "small.toml")], 2
            options.most_micro_batches = 1
            self.extra = ("--train.batch_tokens=256", "--train.precision=bf16", *self.extra)
        make_data(self.data, 1_000_000 if options.small else 128_000_000)

    def pieces(self) -> list[str]:
        """All pieces, what matters most first."""
        by_weight = sorted(self.sizes, key=lambda size: size not in FP8_SIZES[:2])
        fp8 = [size for size in by_weight if size in FP8_SIZES or self.options.small]
        return [
            "ceiling",
            *by_weight,
            *(f"{size}-fp8" for size in fp8),
            *(f"{size}-compile" for size in by_weight),
            *(f"{size}-{peer}" for size in by_weight if size != SIZES[-1] for peer in PEERS),
            *CURVES,
        ]

    def run_piece(self, piece: str) -> int:
        """Run one piece; see `main` for what is returned."""
        if piece == "ceiling":
            return self.run(Case("ceiling", "", 128 if self.options.small else 8192, 5), 120)[1]
        if piece in CURVES:
            return self.run(self.curve(piece), math.inf, breakdown=False)[1]  # it cannot go on later
        size = next((size for size in self.sizes if piece == size or piece.startswith(f"{size}-")), None)
        kind = "" if size is None else piece[len(size) :].lstrip("-")
        if size is None or kind not in (*OURS, *PEERS):
            raise SystemExit(f"there is no piece {piece}; there are {', '.join(self.pieces())}")
        status = 0
        for cases in self.candidates(size, kind):
            status = max(status, self.run_largest(cases))
        return status

    def candidates(self, size: str, kind: str) -> Iterator[list[Case]]:
        """For each micro-batch to compare, it and the smaller ones, which are tried where it does not fit after all."""
        arguments = (*self.extra, *OURS.get(kind, ()))
        tag = " ".join([kind, *self.options.set]).strip() if kind in OURS else ""
        if kind not in PEERS:
            settings = settings_that_fit(size, self.memory, arguments)
            if settings is None:
                layers = layers_that_fit(size, self.memory)
                print(f"{size} does not fit this machine with any setting; measured with {layers} layers")
                arguments, tag = (f"--model.num_layers={layers}", *arguments), f"{tag} {layers} layers".strip()
            else:
                arguments = (*settings, *arguments)
                how = {"offload": "offloading", "recompute=full": "recomputing"}
                words = [word for part, word in how.items() if any(part in setting for setting in settings)]
                tag = " ".join([tag, *words]).strip()
        name = kind if kind in PEERS else "ours"
        largest, *others = micro_batches_to_try(
            size, arguments, self.memory, self.most_micro_batch, self.options.most_micro_batches
        )
        for first in (largest, *others):
            smaller = [first >> step for step in range(first.bit_length())]
            yield [Case(name, size, micro, self.options.steps, arguments, tag) for micro in smaller]

    def curve(self, piece: str) -> Case:
        """500 steps of 2.7B."""
        if self.options.small:
            return Case("ours", self.sizes[0], 2, 12, (*self.extra, *CURVES[piece]), piece)
        recipe = (
            *(f"--train.batch_tokens={CURVE_BATCH_TOKENS}", "--train.lr=1.6e-4"),
            f"--train.warmup_tokens={50 * CURVE_BATCH_TOKENS}",
        )
        arguments = (*self.extra, *recipe, *CURVES[piece])
        micro = micro_batches_to_try("gpt3-2.7b", (*arguments, "--train.fp8=false"), self.memory, 8, 1)[0]
        return Case("ours", "gpt3-2.7b", micro, CURVE_STEPS, arguments, piece)

    def run_largest(self, cases: list[Case]) -> int:
        """The first of the cases that the memory suffices for."""
        for case in cases:
            found, status = self.run(case, 540 if case.size == SIZES[-1] else 280)
            if found is None or "failed" not in found:
                return status
        return 0  # none fits: the lines say so

    def run(self, case: Case, limit: float, breakdown: bool = True) -> tuple[dict[str, Any] | None, int]:
        """One case, unless its result is there already: the result, and the status for `main`."""
        done = {line["key"]: line["result"] for line in read_raw(self.raw)}
        if case.key in done:
            return done[case.key], 0
        left = self.options.seconds - (time.monotonic() - self.started)
        if left < min(LEAST_SECONDS, limit):
            print(f"no time left for {case.key}; the same command goes on with it")
            return None, 3
        request = {
            "case": case,
            "data": str(self.data),
            "breakdown": breakdown,
            "compile": not self.options.small,
        }
        begun = time.monotonic()
        try:
            done_run = subprocess.run(
                [sys.executable, str(WORKER), json.dumps(request)],
                capture_output=True,
                text=True,
                timeout=min(limit, left),
            )
        except subprocess.TimeoutExpired:
            print(f"{case.key}: not done after {min(limit, left):.0f} s")
            return None, 3
        if done_run.returncode:
            print(f"{case.key} failed:\n{(done_run.stdout + done_run.stderr)[-3000:]}")
            return None, 1
        result = json.loads(done_run.stdout.splitlines()[-1])
        self.write(case, result, time.monotonic() - begun)
        return result, 0

    def write(self, case: Case, result: dict[str, Any], wall: float) -> None:
        """Append a line to raw.jsonl."""
        line = {
            "key": case.key,
            "case": case._asdict(),
            "date": date.today().isoformat(),
            "commit": commit(),
            "device": self.device,
            "machine": machine(),
            "versions": versions(("torch", "triton", "deepspeed", "megatron-core", "transformers")),
            "command": command_line(),
            "wall_seconds": wall,
            "result": result,
        }
        if case.kind != "ceiling":
            plan = plan_of(case.size, case.arguments, case.micro_batch)
            line |= {"tokens_per_step": plan.config.train.batch_tokens, "flops_per_token": plan.flops.total}
        with self.raw.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        print(f"{case.key}: {result.get('failed', 'done')} after {wall:.0f} s", flush=True)


def find_device() -> tuple[Memory, str]:
    """Memory of this machine and the device's name; asked in a process of its own, which leaves the device alone."""
    program = (
        "import torch; n = torch.cuda.is_available(); "
        "print(torch.cuda.get_device_properties(0).total_memory if n else 0); "
        "print(torch.cuda.get_device_name() if n else 'CPU')"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    total, name = said.splitlines()[-2:]
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Memory(int(total) / 2**30 if int(total) else host, host), name


def print_report(folder: Path) -> None:
    """Print the table and write it beside raw.jsonl."""
    text = "\n".join(report_lines(read_raw(folder / "raw.jsonl"))) + "\n"
    print(text, end="")
    (folder / "gpu-train.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
