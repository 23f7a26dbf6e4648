"""The output head with its loss, forward and backward: time and peak memory by form and by number of chunks.

    python benchmarks/gpu_head.py                 # on a CUDA device: the family's heads in bf16
    python benchmarks/gpu_head.py --cpu           # gpt3-base's head of 32,000 words, 1024 tokens, on this CPU
    python benchmarks/gpu_head.py --small         # a tiny head on any device: does it run

Forms are measured in turns (A B C A B C); the ratio of a form is the median of its ratio to `chosen` in each round.

whole          F.linear and F.cross_entropy in float32: what nanoGPT and Hugging Face do
whole-compiled the same under torch.compile
before         megagpt until commit 883ff11, read from the repository's history: whole logits, the softmax kept in bf16
chosen         megagpt with the chunks that kernels/head_chunks.py chooses
N chunks       megagpt with that many; `wide`: the table's gradient is summed in float32; `torch`: no kernel of ours
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
import torch.nn.functional as F
from machine import ROOT, command_line, commit, machine, publish, versions
from torch import Tensor

from megagpt.kernels import cross_entropy
from megagpt.kernels.cross_entropy import VocabColumns
from megagpt.kernels.head_chunks import HeadChunks, head_chunks
from megagpt.kernels.output_head import head_loss

_BEFORE = "883ff11"


class Head(NamedTuple):
    """One shape."""

    name: str
    hidden_size: int
    width: int  # columns of the table on this GPU
    num_tokens: int


GPU_HEADS = [
    Head("gpt3-base, micro-batch 16", 768, 50304, 16 * 2048),
    Head("gpt3-large, micro-batch 16", 1024, 50304, 16 * 2048),
    Head("gpt3-1.3b, micro-batch 8", 2048, 50304, 8 * 2048),
    Head("gpt3-2.7b, micro-batch 8", 2560, 50304, 8 * 2048),
    Head("gpt3-2.7b, micro-batch 1", 2560, 50304, 2048),
    Head("gpt3-175b, one of 8 tensor ranks", 12288, 6288, 2048),
    Head("gpt3-175b, whole", 12288, 50304, 2048),
]
CPU_HEADS = [Head("gpt3-base, vocabulary 32,000, 1024 tokens", 768, 32000, 1024)]
SMALL_HEADS = [Head("tiny", 64, 512, 512)]
# (hidden, table, labels, weights) -> loss
Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def whole(hidden: Tensor, table: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """All logits at once."""
    logits = F.linear(hidden, table).flatten(0, 1).float()
    return (F.cross_entropy(logits, labels.flatten(), reduction="none") * weights.flatten()).sum()


def before(columns: VocabColumns) -> Form | None:
    """The head of an earlier commit, None where git or the commit is missing."""
    show = ["git", "-C", str(ROOT), "show", f"{_BEFORE}:megagpt/kernels/cross_entropy.py"]
    try:
        source = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    module: dict[str, Any] = {"__name__": "before"}
    exec(compile(source, "before", "exec"), module)

    def loss(hidden: Tensor, table: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        logits = torch.matmul(hidden, table.t())
        losses = module["vocab_parallel_cross_entropy"](logits, labels, columns.vocab_size, 0, columns.tensor_group)
        total: Tensor = (losses * weights).sum()
        return total

    return loss


def by_torch(form: Form, *inputs: Tensor) -> Tensor:
    """The form with torch's operations in place of our kernel."""
    with mock.patch.object(cross_entropy, "_choose_form", return_value="torch"):
        return form(*inputs)


def forms(head: Head, columns: VocabColumns, device: str, dtype: torch.dtype) -> dict[str, Form]:
    """All forms by name, `chosen` first."""
    chosen = head_chunks(head.num_tokens, head.width, str(dtype).removeprefix("torch."), device)
    found: dict[str, Form] = {"chosen": partial(head_loss, columns=columns), "whole": whole}
    if device == "cuda":
        torch._dynamo.reset()  # else the second head's sizes make it compile for any size
        found["whole-compiled"] = torch.compile(whole, dynamic=False)
    if not head.name.startswith("tiny"):
        found["chosen, torch"] = partial(by_torch, found["chosen"])
    earlier = before(columns)
    if earlier is not None:
        found["before"] = earlier
    for num_chunks in (1, 2, 4, 8, 16):
        tokens = -(-head.num_tokens // num_chunks)
        for wide in (False, True) if dtype == torch.bfloat16 and num_chunks > 1 else (False,):
            if HeadChunks(tokens, num_chunks, wide) != chosen:
                chunks = HeadChunks(tokens, num_chunks, wide)
                name = f"{num_chunks} chunks" + (", wide" if wide else "")
                found[name] = partial(head_loss, columns=columns, chunks=chunks)
    return found


def measure(head: Head, device: str, dtype: torch.dtype, rounds: int, columns: VocabColumns) -> dict[str, Any]:
    """Seconds of each round and peak MiB by form; a form that runs out of memory says so."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(head.num_tokens, 1, head.hidden_size, generator=generator).to(device, dtype).requires_grad_()
    table = (torch.randn(head.width, head.hidden_size, generator=generator) * 0.02).to(device, dtype).requires_grad_()
    labels = torch.randint(0, head.width, (head.num_tokens, 1), generator=generator).to(device)
    weights = torch.ones(head.num_tokens, 1, device=device)
    contenders = forms(head, columns._replace(vocab_size=head.width), device, dtype)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peak: dict[str, float] = {}
    for turn in range(rounds + 2):  # the first two warm up: compilers, caches, clocks
        for name, form in list(contenders.items()):
            try:
                elapsed, mebibytes = run(form, hidden, table, labels, weights)
            except torch.OutOfMemoryError:
                del contenders[name], seconds[name]
                continue
            peak[name] = mebibytes
            if turn >= 2:
                seconds[name].append(elapsed)
    flops = 6 * head.num_tokens * head.hidden_size * head.width
    return {"head": head._asdict(), "flops": flops, "seconds": seconds, "peak_mib": peak}


def run(form: Form, hidden: Tensor, table: Tensor, labels: Tensor, weights: Tensor) -> tuple[float, float]:
    """Seconds of a forward and a backward pass, and on CUDA the peak of memory beyond the inputs, in MiB."""
    hidden.grad = table.grad = None
    held = 0
    if hidden.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    (form(hidden, table, labels, weights) * 0.5).backward()
    if hidden.is_cuda:
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - begin
    return elapsed, (torch.cuda.max_memory_allocated() - held) / 2**20 if hidden.is_cuda else float("nan")


def lines_of(result: dict[str, Any]) -> list[str]:
    """A Markdown table of one head."""
    head, seconds = result["head"], result["seconds"]
    lines = [
        f"## {head['name']}: {head['num_tokens']} tokens, width {head['width']}, hidden {head['hidden_size']}",
        "",
        "| form | ms | TFLOP/s | time / chosen | peak MiB |",
        "|---|---|---|---|---|",
    ]
    for name, times in sorted(seconds.items(), key=lambda item: median(item[1])):
        ratio = median(one / other for one, other in zip(times, seconds["chosen"], strict=True))
        rate = result["flops"] / median(times) / 1e12
        peak = result["peak_mib"][name]
        shown = "not measured" if peak != peak else f"{peak:.0f}"
        lines.append(f"| {name} | {1e3 * median(times):.2f} | {rate:.2f} | {ratio:.3f} | {shown} |")
    return [*lines, ""]


def main() -> None:
    """Measure, print, write the result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="on the CPU, one head")
    parser.add_argument("--small", action="store_true", help="a tiny head")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, help="a .json file; default: benchmarks/results/, --small: none")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    heads = SMALL_HEADS if options.small else CPU_HEADS if device == "cpu" else GPU_HEADS
    output = options.output
    if output is None and not options.small:
        output = ROOT / "benchmarks" / "results" / f"head-{device}-{date.today()}.json"
    store = dist.HashStore()
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=0, world_size=1, store=store)
    columns = VocabColumns(0, 0, dist.group.WORLD)
    dtype = getattr(torch, options.dtype)
    results = [measure(head, device, dtype, options.rounds, columns) for head in heads]
    dist.destroy_process_group()
    place = (
        torch.cuda.get_device_name() if device == "cuda" else f"{machine()['cpu']}, {torch.get_num_threads()} thread"
    )
    report = {
        "date": str(date.today()),
        "command": command_line(),
        "commit": commit(),
        "machine": machine() | {"device": place},
        "versions": versions(["torch", "triton"]),
        "dtype": options.dtype,
        "results": results,
    }
    lines = [f"# Output head and loss, forward and backward, {options.dtype}: {place}, {date.today()}", ""]
    lines += [f"`{report['command']}`, commit {report['commit']}, {options.rounds} rounds.", ""]
    publish(report, lines + [line for result in results for line in lines_of(result)], output)


if __name__ == "__main__":
    main()
