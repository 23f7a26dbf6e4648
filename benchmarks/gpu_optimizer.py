"""AdamW's update alone: torch's forms, DeepSpeed's FusedAdam and apex's, where they are installed, on one device.

In: numbers of parameters. Out: a table and a JSON file. Parameters are one flat float32 tensor with its gradient, as
ZeRO keeps the masters. GB/s counts 28 bytes a parameter: weight, gradient and two moments read, all but the gradient
written. DeepSpeed's is built on its first use, which takes a minute and needs nvcc.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from machine import command_line, commit, machine, publish, versions

BYTES = 28
SETTINGS = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
Maker = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def deepspeed_fused(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """DeepSpeed's kernel over lists of tensors."""
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam(parameters, **SETTINGS)


def apex_fused(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """NVIDIA apex's."""
    from apex.optimizers import FusedAdam

    return FusedAdam(parameters, **SETTINGS)


MAKERS: dict[str, Maker] = {
    "torch fused": lambda parameters: torch.optim.AdamW(parameters, fused=True, **SETTINGS),
    "torch foreach": lambda parameters: torch.optim.AdamW(parameters, foreach=True, **SETTINGS),
    "torch for-loop": lambda parameters: torch.optim.AdamW(parameters, foreach=False, fused=False, **SETTINGS),
    "DeepSpeed FusedAdam": deepspeed_fused,
    "apex FusedAdam": apex_fused,
}


def main() -> int:
    """Measure and report."""
    options = parser().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = [100_000] if options.small else options.parameters
    found = {size: {name: measure(name, size, device, options.rounds) for name in MAKERS} for size in sizes}
    report = {
        "date": date.today().isoformat(),
        "command": command_line(),
        "commit": commit(),
        "machine": machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "versions": versions(("torch", "deepspeed", "apex")),
        "updates": found,
    }
    publish(report, table(report), options.output)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--parameters", type=int, nargs="+", default=[124_000_000, 1_300_000_000])
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--small", action="store_true", help="a size for any machine, to see that it works")
    made.add_argument("--output", type=Path, help="JSON file; a .md is written beside it")
    return made


def measure(name: str, size: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds of each update after two that warm up, or why there are none."""
    try:
        parameter = torch.nn.Parameter(torch.randn(size, device=device))
        parameter.grad = torch.randn(size, device=device)
        optimizer = MAKERS[name]([parameter])
        seconds = [_timed(optimizer.step, device) for _ in range(rounds + 2)][2:]
    except Exception as error:  # not installed, not built, not for this device, or no memory for it
        return {"missing": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    return {"seconds": seconds}


def _timed(step: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def table(report: dict[str, Any]) -> list[str]:
    """The report as Markdown."""
    lines = [
        f"AdamW's update on {report['device']}, median (least to most); {report['date']}, commit {report['commit']}.",
        "",
        f"    {report['command']}",
        "",
        "| parameters | optimizer | ms | GB/s |",
        "|---|---|---|---|",
    ]
    for size, updates in report["updates"].items():
        for name, found in updates.items():
            if "missing" in found:
                lines.append(f"| {int(size):,} | {name} | {found['missing']} |  |")
                continue
            seconds = found["seconds"]
            middle = statistics.median(seconds)
            spread = f"{1e3 * middle:.2f} ({1e3 * min(seconds):.2f}–{1e3 * max(seconds):.2f})"
            lines.append(f"| {int(size):,} | {name} | {spread} | {int(size) * BYTES / middle / 1e9:,.0f} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
