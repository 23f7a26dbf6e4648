"""Does a step cost what model/cost.py says, along sequence length, depth, width and ranks; and does it wait for data?

    python benchmarks/scaling.py --output benchmarks/results/scaling-DATE.json

On the CPU with gloo. Each step is a whole one of training: forward, backward, sums over ranks, the update. The cases of
a sweep take turns. Work is counted by torch's FLOP counter on every rank, in a step beside those that are timed.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from machine import command_line, commit, machine, publish, versions  # noqa: E402

VOCAB = 8192


class Case(NamedTuple):
    """A model and a batch. All cases of one sweep differ in one number."""

    layers: int = 4
    hidden: int = 512
    length: int = 256
    sequences: int = 4

    def arguments(self) -> list[str]:
        """The configuration of it: one step of one batch, in micro-batches of one sequence."""
        return [
            *(f"--model.num_layers={self.layers}", f"--model.hidden_size={self.hidden}"),
            *(f"--model.num_heads={max(2, self.hidden // 64)}", f"--model.sequence_length={self.length}"),
            *(f"--model.vocab_size={VOCAB}", f"--train.batch_tokens={self.sequences * self.length}"),
            *(
                "--train.micro_batch_size=1",
                "--train.steps=3",
                "--train.precision=fp32",
                "--train.lr_schedule=constant",
            ),
        ]


BASE, SMALL = Case(), Case(2, 64, 32, 4)


def sweeps(base: Case) -> dict[str, list[Case]]:
    """Sequence length (at the same number of tokens), depth and width, from half to four times the base."""
    tokens = base.length * base.sequences
    lengths = [base.length * n // 2 for n in (1, 2, 4, 8)]
    return {
        "sequence length": [base._replace(length=length, sequences=tokens // length) for length in lengths],
        "depth": [base._replace(layers=base.layers * n // 2) for n in (1, 2, 4)],
        "width": [base._replace(hidden=base.hidden * n // 2) for n in (1, 2, 4)],
    }


# name: ranks, threads of each, configuration
RANKS: dict[str, tuple[int, int, list[str]]] = {
    "one rank, 2 threads": (1, 2, []),
    "one rank, 1 thread": (1, 1, []),
    "data 2": (2, 1, ["--parallel.zero_stage=1"]),
    "tensor 2": (2, 1, ["--parallel.tensor=2", "--parallel.sequence_parallel=true"]),
    "context 2": (2, 1, ["--parallel.context=2"]),
    "pipeline 2": (2, 1, ["--parallel.pipeline=2"]),
}


class Trainer:
    """One rank that can do steps of one case."""

    def __init__(self, case: Case, extra: Sequence[str], mesh: Any = None) -> None:
        import torch

        from megagpt.config_file import load_config
        from megagpt.data.batch import context_part
        from megagpt.data.stream import cut, make_batch
        from megagpt.parallel.launcher import launched_world_size
        from megagpt.parallel.mesh import build_mesh
        from megagpt.plan import make_plan
        from megagpt.training.build import build_engine

        self.plan = make_plan(load_config(None, [*case.arguments(), *extra]), launched_world_size(), None)
        layout = self.plan.layout
        self.mesh = mesh or build_mesh(layout.tensor, layout.pipeline, layout.virtual_stages, layout.context)
        self.engine = build_engine(self.plan, self.mesh)
        rows = torch.randint(0, VOCAB, (case.sequences // layout.data, case.length + 1)).numpy()
        whole = context_part(make_batch(rows, None), self.mesh.context_rank, self.mesh.context_size)
        self.batches = cut(whole, 1)

    def passes(self) -> None:
        """Forward and backward of one step."""
        from megagpt.training.totals import reduce_num_loss_tokens

        weight = self.mesh.gradient_size / reduce_num_loss_tokens(self.batches, self.mesh)
        self.engine.forward_backward(self.batches, weight, None)

    def step(self) -> float:
        """Seconds of one whole step."""
        started = time.perf_counter()
        self.passes()
        self.engine.reduce_model_parallel_gradients()
        self.engine.update(1e-4)
        return time.perf_counter() - started

    def counted(self) -> int:
        """Operations of this rank's passes in one step."""
        from flops import CountedFlops

        with CountedFlops() as counter:
            self.passes()
        self.engine.skip_update(1e-4)
        return int(counter.get_total_flops())

    def model_flops(self) -> int:
        """Operations of one step by model/cost.py, of all ranks together."""
        return self.plan.flops.total * self.plan.batches.stages[-1].num_sequences * self.plan.spec.sequence_length


def measure_cases(cases: Sequence[Case], extra: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """In this process, one rank: of each case, seconds of every round, counted and expected operations."""
    import torch.distributed as dist

    trainers = [Trainer(cases[0], extra)]
    trainers += [Trainer(case, extra, trainers[0].mesh) for case in cases[1:]]
    counts = [trainer.counted() for trainer in trainers]
    for trainer in trainers:
        trainer.step()  # makes the optimizer's state
    seconds: list[list[float]] = [[] for _ in trainers]
    for _ in range(rounds):
        for own, trainer in zip(seconds, trainers, strict=True):
            own.append(trainer.step())
    found = []
    for case, trainer, own, count in zip(cases, trainers, seconds, counts, strict=True):
        of_ranks: list[Any] = [None] * trainer.mesh.world_size
        dist.all_gather_object(of_ranks, count)
        found.append(case._asdict() | {"seconds": own, "counted": of_ranks, "model": trainer.model_flops()})
    return found


def in_ranks(num_ranks: int, threads: int, task: dict[str, Any]) -> Any:
    """Run this script on some ranks; what rank 0 answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--task", json.dumps(task), "--answer", f"{folder}/answer.json"]
        ranks = [
            subprocess.Popen(command, env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(num_ranks)
        ]
        statuses = [rank.wait() for rank in ranks]
        if any(statuses):
            raise SystemExit(f"ranks ended with {statuses}")
        return json.loads(Path(folder, "answer.json").read_text())


class NumberedSamples:
    """Samples of made-up tokens, as from memory; `seconds` more each time, as from a slow disk."""

    samples_per_epoch = 10**9

    def __init__(self, length: int, seconds: float) -> None:
        self._length, self._seconds = length, seconds

    def tokens_of_many(self, samples: Any) -> Any:
        """[n, S+1]."""
        import numpy as np

        time.sleep(self._seconds)
        return (samples[:, None] * 7 + np.arange(self._length + 1)) % VOCAB


def measure_stall(case: Case, steps: int, slow: float) -> dict[str, Any]:
    """Seconds that a step waits for its batch, read ahead and read in place; reading takes `slow` seconds more."""
    from megagpt.data.stream import BatchStream
    from megagpt.training.read_ahead import ReadAhead

    trainer = Trainer(case, [])
    trainer.step()
    stream = BatchStream(NumberedSamples(case.length, slow), case.length, 0, False, 0, 1)
    places = [trainer.plan.step_batch(step) for step in range(2 * steps + 1)]
    waits: dict[str, list[float]] = {"ahead": [], "in place": []}
    whole: dict[str, list[float]] = {"ahead": [], "in place": []}
    with ReadAhead(stream, trainer.mesh.device) as reader:
        reader.begin(places[0])
        for number in range(2 * steps):
            way = "ahead" if number % 2 == 0 else "in place"
            began = time.perf_counter()
            trainer.batches = reader.take(places[number])
            waits[way].append(time.perf_counter() - began)
            if way == "in place":  # the next one is asked for now
                reader.begin(places[number + 1])
            trainer.step()
            whole[way].append(time.perf_counter() - began)
    return {"case": case._asdict(), "slow_seconds": slow, "waits": waits, "steps": whole}


def run_task(task: dict[str, Any], answer: Path) -> None:
    """One rank's part of a measurement."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    cases = [Case(**case) for case in task["cases"]]
    if "slow" in task:
        found: Any = [measure_stall(cases[0], task["rounds"], slow) for slow in task["slow"]]
    else:
        found = measure_cases(cases, task["extra"], task["rounds"])
    if os.environ["RANK"] == "0":
        answer.write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)


def table_of_sweeps(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Work and time of each case beside those of its sweep's first."""
    yield "| sweep | layers | hidden | length | sequences | counted / model | GFLOP | seconds | GFLOP/s | time / work |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for sweep, cases in found.items():
        first = cases[0]
        for case in cases:
            seconds = statistics.median(case["seconds"])
            pairs = zip(case["seconds"], first["seconds"], strict=True)
            growth = statistics.median(own / of_first for own, of_first in pairs) / (case["model"] / first["model"])
            shape = " | ".join(str(case[name]) for name in Case._fields)
            ratio = sum(case["counted"]) / case["model"]
            yield (
                f"| {sweep} | {shape} | {ratio:.6f} | {case['model'] / 1e9:.1f} | {seconds:.3f} | "
                f"{case['model'] / seconds / 1e9:.1f} | {growth:.2f} |"
            )


def table_of_ranks(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The same work on ranks."""
    yield "| ranks | counted / model | share of each rank | seconds | GFLOP/s of all |"
    yield "|---|---|---|---|---|"
    for name, case in found.items():
        seconds, total = statistics.median(case["seconds"]), sum(case["counted"])
        shares = ", ".join(f"{count / total:.1%}" for count in case["counted"])
        rate = case["model"] / seconds / 1e9
        yield f"| {name} | {total / case['model']:.6f} | {shares} | {seconds:.3f} | {rate:.1f} |"


def table_of_stalls(found: list[dict[str, Any]]) -> Iterator[str]:
    """The share of a step that waits for data; the first step, which nothing precedes, is left out."""
    yield "| a read takes longer by | step | wait, read ahead | share | wait, read in place | share |"
    yield "|---|---|---|---|---|---|"
    for case in found:
        cells = []
        for way in ("ahead", "in place"):
            wait, step = statistics.mean(case["waits"][way][1:]), statistics.mean(case["steps"][way][1:])
            cells += [f"{wait * 1e3:.3f} ms", f"{wait / step:.2%}"]
        yield (
            f"| {case['slow_seconds'] * 1e3:.0f} ms | {statistics.mean(case['steps']['ahead'][1:]) * 1e3:.0f} ms | "
            + " | ".join(cells)
            + " |"
        )


def main() -> None:
    """Measure, print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="a tiny model: shows that all of it runs")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task is not None:
        run_task(json.loads(arguments.task), arguments.answer)
    base, rounds = SMALL if arguments.small else BASE, arguments.rounds
    load_before, swept, of_ranks = os.getloadavg(), {}, {}
    for name, cases in sweeps(base).items():
        task = {"cases": [case._asdict() for case in cases], "extra": [], "rounds": rounds}
        swept[name] = in_ranks(1, 1, task)
    for name, (num_ranks, threads, extra) in RANKS.items():
        task = {"cases": [base._asdict()], "extra": extra, "rounds": rounds}
        (of_ranks[name],) = in_ranks(num_ranks, threads, task)
    stalls = in_ranks(
        1, 1, {"cases": [base._asdict()], "rounds": rounds, "slow": [0.0, 0.02 if arguments.small else 0.2]}
    )
    about = {
        "date": date.today().isoformat(),
        "command": command_line(),
        "commit": commit(),
        "machine": machine(),
        "load": [round(value, 1) for value in (*load_before, *os.getloadavg())],
        "versions": versions(["torch", "deepspeed", "megatron-core", "numpy"]),
    }
    lines = [f"# Scaling of a step, {about['date']}", "", f"`{about['command']}`, commit {about['commit']}", ""]
    lines += [
        f"{about['machine']}, load averages before and after {about['load']}",
        "",
        "## Sequence length, depth, width: one rank, one thread",
        "",
    ]
    lines += [*table_of_sweeps(swept), "", "## Ranks", "", *table_of_ranks(of_ranks)]
    lines += ["", "## Waiting for data: one rank, one thread", "", *table_of_stalls(stalls)]
    publish(about | {"sweeps": swept, "ranks": of_ranks, "stalls": stalls}, lines, arguments.output)


if __name__ == "__main__":
    main()
