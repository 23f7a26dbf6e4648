"""Bias + GELU, and bias + residual sum + LayerNorm, forward + backward: torch's operations, our kernels, torch.compile.

Run: python benchmarks/pointwise.py [--small] [--output FILE.json]      on CUDA where there is one, else on the CPU

The three forms of a case are called in turn, so that each round is paired; medians of rounds. On CUDA by the device's
clock; on the CPU, on one thread, by the process's own time, which waiting for other processes does not lengthen. The
rate is of the bytes that must be read and written at least.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.machine import command_line, commit, machine, publish, versions
from megagpt.kernels.bias_gelu import bias_gelu
from megagpt.kernels.gelu import gelu
from megagpt.kernels.residual_norm import Branch, add_branch, add_norm

SHAPES = {"base": (768, 8192), "1.3b": (2048, 8192), "2.7b": (2560, 8192), "175b": (12288, 4096)}  # hidden, tokens
CPU_SHAPES = {"base": (768, 1024)}
SMALL = {"small": (64, 32)}
# tensors of the case's width read and written at least, forward and backward
MOVED = {"bias_gelu": 2 + 3, "add_norm": 4 + 4, "add_branch": 3 + 1}
Form = Callable[..., tuple[Tensor, ...]]


def forms(case: str) -> dict[str, Form]:
    """By name: torch's operations, what the package chooses, torch.compile."""
    if case == "bias_gelu":
        return {
            "torch": lambda x, b: (gelu(x + b, "gelu_tanh"),),
            "ours": lambda x, b: (bias_gelu(x, b, "gelu_tanh"),),
            "compile": lambda x, b: (bias_gelu(x, b, "gelu_tanh", compiles=True),),
        }
    if case == "add_branch":
        return {
            "torch": lambda r, o, b: (r + (o + b),),
            "ours": lambda r, o, b: (add_branch(r, Branch(o, b)),),
            "compile": lambda r, o, b: (add_branch(r, Branch(o, b, compiles=True)),),
        }

    def plain(r: Tensor, o: Tensor, b: Tensor, w: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        summed = r + (o + b)
        return summed, F.layer_norm(summed, w.shape, w, s, 1e-5)

    return {
        "torch": plain,
        "ours": lambda r, o, b, w, s: add_norm(r, Branch(o, b), w, s, 1e-5),
        "compile": lambda r, o, b, w, s: add_norm(r, Branch(o, b, compiles=True), w, s, 1e-5),
    }


def inputs(case: str, hidden: int, tokens: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random tensors [tokens, 1, width] and vectors, with gradients."""
    width = 4 * hidden if case == "bias_gelu" else hidden
    large, vectors = {"bias_gelu": (1, 1), "add_branch": (2, 1), "add_norm": (2, 3)}[case]
    shapes: list[tuple[int, ...]] = [(tokens, 1, width)] * large + [(width,)] * vectors
    return [torch.randn(shape, dtype=dtype, device=device).requires_grad_() for shape in shapes]


def seconds(form: Form, given: list[Tensor]) -> float:
    """One forward and backward pass."""
    outputs = form(*given)
    grads = [torch.ones_like(output) for output in outputs]
    del outputs
    if given[0].is_cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(2_000_000)  # about a millisecond: the host runs ahead, what is timed is the device's work
        begin.record()
        torch.autograd.grad(form(*given), given, grads)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    begin_seconds = time.process_time()
    torch.autograd.grad(form(*given), given, grads)
    return time.process_time() - begin_seconds


def measure(case: str, hidden: int, tokens: int, dtype: torch.dtype, device: torch.device, rounds: int) -> dict:
    """Median seconds of each form, and medians of each round's ratio to torch's."""
    given = inputs(case, hidden, tokens, dtype, device)
    times: dict[str, list[float]] = {name: [] for name in forms(case)}
    for number in range(rounds + 3):
        for name, form in forms(case).items():
            taken = seconds(form, given)
            if number >= 3:  # the first rounds compile and warm up
                times[name].append(taken)
    ratios = {
        name: statistics.median(one / other for one, other in zip(times[name], times["torch"], strict=True))
        for name in times
    }
    moved = MOVED[case] * given[0].numel() * given[0].element_size()
    return {
        "case": case,
        "hidden": hidden,
        "tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": {name: statistics.median(found) for name, found in times.items()},
        "of_torch": ratios,
        "least_bytes": moved,
        "rounds": times,
    }


def lines(rows: list[dict]) -> list[str]:
    """A Markdown table."""
    times = ["torch ms", "ours ms", "compile ms", "ours / torch", "compile / torch", "ours GB/s"]
    table = [f"| case | hidden | tokens | dtype | {' | '.join(times)} |", "|---|--:|--:|---|" + "--:|" * len(times)]
    for row in rows:
        taken, ratio = row["seconds"], row["of_torch"]
        rate = row["least_bytes"] / taken["ours"] / 1e9
        values = " | ".join(f"{taken[name] * 1e3:.3f}" for name in ("torch", "ours", "compile"))
        table.append(
            f"| {row['case']} | {row['hidden']} | {row['tokens']} | {row['dtype']} | {values} | "
            f"{ratio['ours']:.2f} | {ratio['compile']:.2f} | {rate:.0f} |"
        )
    return table


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes, two rounds: shows that it runs")
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # of several the process's time would be their sum
    shapes = SMALL if arguments.small else SHAPES if device.type == "cuda" else CPU_SHAPES
    rows = [
        measure(case, hidden, tokens, dtype, device, 2 if arguments.small else 40)
        for hidden, tokens in shapes.values()
        for case in MOVED
        for dtype in (torch.bfloat16, torch.float32)
    ]
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    report = {
        "command": command_line(),
        "date": time.strftime("%Y-%m-%d"),
        "device": name,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(["torch", "triton"]),
        "commit": commit(),
        "rows": rows,
    }
    title = f"# Pointwise kernels, forward + backward, on {name}, {report['date']}, commit {report['commit']}"
    publish(report, [title, "", *lines(rows)], arguments.output)


if __name__ == "__main__":
    main()
