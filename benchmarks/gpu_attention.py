"""Every way of attending that works here, side by side: which is fastest for which shape.

    python benchmarks/gpu_attention.py --output benchmarks/results/gpu-attention-DATE.json
    python benchmarks/gpu_attention.py --small     # minutes on a CPU: that it runs, not what a GPU does

For each shape, from a projection's output [S, B, N * 3 * D] to the next one's input [S, B, N * D] and back: layouts
that need a copy pay for it. Rounds are interleaved, medians are shown. TFLOP/s count the pairs of tokens that see each
other: 4 D a pair and head forward, 10 D backward. Memory is the most that was allocated over what stood before. The
difference is the largest of output and gradient from torch's in fp32 (with `--small`: from the formula in float64),
relative to the largest value.

`--widths`, `--lengths` and `--backends` measure a part. A shape's rows are in the output file as soon as they are
measured; called again with the same file, machine and versions, it measures what is not there yet.
"""

import argparse
import json
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import command_line, commit, machine, publish, versions, write_whole
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megagpt.kernels.attention import choose, reference_attention
from megagpt.kernels.attention_backends import BACKENDS, missing
from megagpt.kernels.attention_documents import PackedDocuments
from megagpt.kernels.attention_names import ABILITIES
from megagpt.kernels.attention_packing import split_projection

HEADS = {64: 16, 80: 32, 128: 16}  # of gpt3-large, 2.7b, and 13b on two or three tensor ranks
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SEED = 11

_LEAD_CYCLES = 2_000_000  # about a millisecond


class Shape(NamedTuple):
    """What is attended to. `document`: mean tokens of a document, 0 where documents are not kept apart."""

    width: int
    length: int
    batch: int
    document: int
    dtype: str
    dropout: float

    @property
    def name(self) -> str:
        """As a row of the tables begins."""
        documents = f"documents of {self.document}" if self.document else "causal"
        return f"{self.width} | {self.length} x {self.batch} | {documents} | {self.dtype} | {self.dropout:g}"


def shapes(widths: list[int], lengths: list[int], tokens: int) -> list[Shape]:
    """bf16 everywhere; fp16 and dropout at one length."""
    made = []
    for width in widths:
        for length in lengths:
            for document in (0, 500, 100):
                made.append(Shape(width, length, max(1, tokens // length), document, "bf16", 0.0))
        length = min(lengths, key=lambda n: abs(n - 2048))
        batch = max(1, tokens // length)
        made.append(Shape(width, length, batch, 0, "fp16", 0.0))
        made += [Shape(width, length, batch, document, "bf16", 0.1) for document in (0, 500)]
    return made


def make_documents(shape: Shape, device: torch.device) -> PackedDocuments | None:
    """Documents that end after each token with the same probability."""
    if shape.document == 0:
        return None
    draws = torch.rand(shape.batch, shape.length, generator=torch.Generator().manual_seed(1))
    return PackedDocuments((draws < 1 / shape.document).cumsum(1).int().to(device))


def run(name: str, projected: Tensor, documents: PackedDocuments | None, shape: Shape) -> Tensor:
    """[S, B, N, 3 * D] to [S, B, N * D], as a layer does."""
    query, key, value = split_projection(projected, shape.width)
    seed = SEED if shape.dropout else None
    mixed = BACKENDS[name](query, key, value, documents, shape.dropout, seed)
    return mixed.permute(2, 0, 1, 3).flatten(-2).contiguous()


def truth(projected: Tensor, documents: PackedDocuments | None, shape: Shape, slopes: Tensor) -> list[Tensor]:
    """Output and gradient by torch in fp32 under a mask, a sequence at a time; by the formula in float64 on a CPU."""
    on_cpu = projected.device.type == "cpu"
    attend = reference_attention if on_cpu else torch.nn.functional.scaled_dot_product_attention
    outputs, grads = [], []
    for row in range(shape.batch):
        one = projected.detach()[:, row : row + 1].to(torch.float64 if on_cpu else torch.float32).requires_grad_()
        numbers = projected.new_zeros(1, shape.length, dtype=torch.int32)
        mask = PackedDocuments(numbers if documents is None else documents.documents[row : row + 1]).mask
        output = attend(*split_projection(one, shape.width), mask).permute(2, 0, 1, 3).flatten(-2)
        grads += torch.autograd.grad(output, one, slopes[:, row : row + 1].to(one.dtype))
        outputs.append(output.detach())
    return [torch.cat(outputs, 1), torch.cat(grads, 1)]


class Clock:
    """Milliseconds between marks, by the device."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def mark(self) -> Any:
        """Now."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds; waits for the device."""
        if not self.on_gpu:
            return float(end - begin) * 1e3
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))


def measure(shape: Shape, names: list[str], device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A row for each way: milliseconds, memory and difference, or why it cannot."""
    torch.manual_seed(0)
    heads, dtype = HEADS[shape.width] if device.type == "cuda" else 2, DTYPES[shape.dtype]
    projected = torch.randn(shape.length, shape.batch, heads, 3 * shape.width, device=device, dtype=dtype)
    projected.requires_grad_()
    documents, clock = make_documents(shape, device), Clock(device)
    slopes = torch.randn(shape.length, shape.batch, heads * shape.width, device=device, dtype=dtype)
    wanted = truth(projected, documents, shape, slopes) if shape.dropout == 0 else None
    rows, times = {}, {}
    for name in names:
        rows[name] = _first(name, projected, documents, shape, slopes, wanted)
        times[name] = ([], []) if "cannot" not in rows[name] else None
    for _ in range(rounds):
        for name in names:
            if times[name] is None:
                continue
            if projected.is_cuda:
                torch.cuda._sleep(_LEAD_CYCLES)  # the host runs ahead: what is timed is the device's work
            begin = clock.mark()
            output = run(name, projected, documents, shape)
            middle = clock.mark()
            torch.autograd.grad(output, projected, slopes)
            end = clock.mark()
            times[name][0].append(clock.between(begin, middle))
            times[name][1].append(clock.between(middle, end))
    pairs = visible_pairs(shape, documents) * heads * shape.width
    for name, found in times.items():
        if found is not None:
            forward, backward = (statistics.median(part) for part in found)
            rows[name] |= {"forward_ms": forward, "backward_ms": backward, "rounds_ms": found}
            rows[name]["forward_tflops"] = 4 * pairs / forward / 1e9
            rows[name]["backward_tflops"] = 10 * pairs / backward / 1e9
    return list(rows.values())


def _first(
    name: str,
    projected: Tensor,
    documents: PackedDocuments | None,
    shape: Shape,
    slopes: Tensor,
    wanted: list[Tensor] | None,
) -> dict[str, Any]:
    """The first run, in which kernels are compiled; then memory, and the difference from the truth."""
    row: dict[str, Any] = {"backend": name}
    ability, on_gpu = ABILITIES[name], projected.is_cuda
    asked = (shape.dtype == "fp32", shape.dropout > 0, documents is not None)
    if any(wants > can for wants, can in zip(asked, ability[:3], strict=True)):
        return row | {"cannot": "by its kind"}
    try:
        for _ in range(2):
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() if on_gpu else 0
            output = run(name, projected, documents, shape)
            (grad,) = torch.autograd.grad(output, projected, slopes)
            if on_gpu:
                row["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
                torch.cuda.synchronize()  # an error of the device is this one's
    except Exception as error:  # of a library, or of Triton (which has classes of its own): noted, not hidden
        if on_gpu:
            torch.ones(1, device=projected.device).sum().item()  # raises where the device is lost for all that follows
        return row | {"cannot": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    if wanted is not None:
        found = (output.detach(), grad)
        row["difference"] = max(
            float((one.double() - other.double()).abs().max() / other.abs().max())
            for one, other in zip(found, wanted, strict=True)
        )
    return row


def visible_pairs(shape: Shape, documents: PackedDocuments | None) -> int:
    """Pairs of a query and a key that it sees."""
    if documents is None:
        return shape.batch * shape.length * (shape.length + 1) // 2
    places = torch.arange(shape.length, device=documents.documents.device)
    return int((places - documents.bounds.starts + 1).sum())


def lines_of(report: dict[str, Any]) -> list[str]:
    """The tables in Markdown: every row, then the fastest of each shape beside what auto takes."""
    lines = [
        f"Attention, {report['date']}, commit {report['commit']}, {report['device']}, medians of {report['rounds']}.",
        *("", f"    {report['command']}", ""),
        "| width | length x batch | documents | numbers | dropout | backend | forward ms | backward ms "
        "| forward TFLOP/s | backward TFLOP/s | peak MiB | difference |",
        "|---" * 12 + "|",
    ]
    best = ["", "The fastest of forward and backward together:", ""]
    best += [
        "| width | length x batch | documents | numbers | dropout | fastest | ms | auto takes | ms |",
        "|---" * 9 + "|",
    ]
    for shape in report["shapes"]:
        timed = [row for row in shape["rows"] if "forward_ms" in row]
        for row in shape["rows"]:
            if row in timed:
                numbers = [f"{row[key]:.3f}" for key in ("forward_ms", "backward_ms")]
                numbers += [f"{row[key]:.2f}" for key in ("forward_tflops", "backward_tflops")]
                numbers.append(f"{row['peak_mib']:.0f}" if "peak_mib" in row else "")
                numbers.append(f"{row['difference']:.1e}" if "difference" in row else "")
                lines.append(f"| {shape['name']} | {row['backend']} | " + " | ".join(numbers) + " |")
            elif row["cannot"] != "by its kind":
                lines.append(f"| {shape['name']} | {row['backend']} | {row['cannot']} |" + " |" * 5)
        total = {row["backend"]: row["forward_ms"] + row["backward_ms"] for row in timed}
        if total:
            first, auto = min(total, key=lambda name: total[name]), shape["auto"]
            taken = f"{total[auto]:.3f}" if auto in total else "not measured"
            best.append(f"| {shape['name']} | {first} | {total[first]:.3f} | {auto} | {taken} |")
    return lines + best


def auto_takes(shape: Shape, device: torch.device) -> str:
    """What attention's "auto" chooses for such tensors."""
    query, key, value = torch.empty(
        3, 1, 1, shape.length, shape.width, device=device, dtype=DTYPES[shape.dtype]
    ).unbind()
    return choose(query, key, value, make_documents(shape, device), shape.dropout > 0)


def shapes_of(output: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured before into the same file. Ends the program where that was not the same thing."""
    before = json.loads(output.read_text(encoding="utf-8"))
    for key in ("commit", "device", "machine", "versions", "rounds"):
        if before[key] != report[key]:
            raise SystemExit(f"{output} has results of {key} {before[key]}, this is {report[key]}: name another file")
    report["command"] = "\n    ".join(dict.fromkeys([*before["command"].split("\n    "), report["command"]]))
    return list(before["shapes"])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--widths", type=int, nargs="+", default=list(HEADS), choices=list(HEADS))
    made.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    made.add_argument("--tokens", type=int, default=16_384, help="of a micro-batch")
    made.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS))
    made.add_argument("--rounds", type=int, default=20)
    made.add_argument("--small", action="store_true", help="short sequences, one round, on the CPU")
    made.add_argument("--output", type=Path, help="JSON file; a .md is written beside it")
    return made


def main() -> int:
    """Measure and report; 0 if it went well."""
    options = parser().parse_args()
    if options.small:
        options.lengths, options.tokens, options.rounds = [64, 128], 128, 1
    elif not torch.cuda.is_available():
        print("no CUDA device: --small runs on a CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.small else "cuda")
    names = [name for name in options.backends if missing(name, device) is None]
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": command_line(),
        "commit": commit(),
        "machine": machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "a CPU (--small)",
        "versions": versions(("torch", "triton", "flash-attn", "transformer-engine")) | {"cuda": torch.version.cuda},
        "rounds": options.rounds,
        "shapes": [],
    }
    if options.output is not None and options.output.exists():
        report["shapes"] = shapes_of(options.output, report)
    found = {shape["name"]: shape for shape in report["shapes"]}
    for shape in shapes(options.widths, options.lengths, options.tokens):
        if shape.name not in found:
            found[shape.name] = {"name": shape.name, **shape._asdict(), "auto": auto_takes(shape, device), "rows": []}
            report["shapes"].append(found[shape.name])
        rows = found[shape.name]["rows"]
        known = {row["backend"] for row in rows}
        if known >= set(names):
            continue
        torch._dynamo.reset()  # flex attention compiles for each shape, and gives up after a few
        rows += measure(shape, [name for name in names if name not in known], device, options.rounds)
        print(f"{shape.name}: measured", file=sys.stderr)
        if options.output is not None:
            write_whole(options.output, json.dumps(report, indent=1) + "\n")
    publish(report, lines_of(report), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
