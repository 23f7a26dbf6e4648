"""The GPU suite's tables and goals from its raw results. In: lines of raw.jsonl. Out: Markdown. Measures nothing."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gpu_cases import PEERS

from megagpt.training.devices import peak_tflops

WARM_UP = 3  # steps that do not count
GOAL_MFU = {"gpt3-base": 0.5, "gpt3-large": 0.5, "gpt3-1.3b": 0.6, "gpt3-2.7b": 0.6}
GOAL_PEER, GOAL_FP8 = 1.10, 1.25
_SETTLED = 100  # last steps of a curve that are compared


class Row(NamedTuple):
    """One run in numbers."""

    size: str
    name: str  # ours bf16, ours fp8, nanogpt …
    micro_batch: int
    tokens_per_second: float
    spread: float  # (slowest - fastest step) / median
    tflops: float  # model TFLOP/s
    mfu: float | None
    of_ceiling: float | None
    peak_gib: float | None
    breakdown: dict[str, float]


def read_raw(path: Path) -> list[dict[str, Any]]:
    """Lines of raw.jsonl; none where it does not exist yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def report_lines(lines: list[dict[str, Any]]) -> list[str]:
    """All tables."""
    if not lines:
        return ["Nothing has been measured yet."]
    rows = make_rows(lines)
    known = [", ".join(f"{name} {version}" for name, version in line["versions"].items() if version) for line in lines]
    device, days, commits = (_each(str(line[key]) for line in lines) for key in ("device", "date", "commit"))
    text = [
        f"Training on {device}, {days}, commit {commits}, {_each(known, ' / ')}.",
        "",
        *(f"    {command}" for command in dict.fromkeys(line["command"] for line in lines)),
        "",
        "Tokens/s: of the median step after three. Model TFLOP/s: forward GEMMs times three, attention over the full "
        "S × S matrix, recomputation not counted, the same for all. MFU: of the dense bf16 peak, also for fp8. Of the "
        "ceiling: of a large bf16 product measured in the same run.",
        "",
        _ceiling_words(lines),
        "",
        *_speed_table(rows),
        "",
        *_breakdown_table(rows),
        "",
        *_goals(rows),
        "",
        *_curves(lines),
    ]
    failed = [f"- {line['key']}: {line['result']['failed']}" for line in lines if "failed" in line["result"]]
    return [*text, *(["", "Not run:", "", *failed] if failed else [])]


def _each(values: Iterable[str], between: str = ", ") -> str:
    """Every value once: lines may be of several days."""
    return between.join(dict.fromkeys(values))


def make_rows(lines: list[dict[str, Any]]) -> list[Row]:
    """Rows of all runs that were timed."""
    ceiling = ceiling_tflops(lines)
    return [
        _row(line, ceiling)
        for line in lines
        if line["case"]["kind"] != "ceiling"
        and "failed" not in line["result"]
        and not line["case"]["tag"].startswith("curve")
    ]


def ceiling_tflops(lines: list[dict[str, Any]], precision: str = "bf16") -> float | None:
    """The best round of the large product."""
    rates = [rate for line in lines for rate in line["result"].get("tflops", {}).get(precision, [])]
    return max(rates, default=None)


def best(rows: list[Row], size: str, name: str) -> Row | None:
    """The run with the most tokens a second of those whose name begins so, over micro-batches and settings."""
    found = [row for row in rows if row.size == size and row.name.startswith(name) and "layers" not in row.name]
    return max(found, key=lambda row: row.tokens_per_second, default=None)


def _row(line: dict[str, Any], ceiling: float | None) -> Row:
    case, result = line["case"], line["result"]
    seconds = result["seconds"][WARM_UP:] or result["seconds"]
    middle = statistics.median(seconds)
    rate = line["tokens_per_step"] / middle
    tflops = rate * line["flops_per_token"] / 1e12
    peak = peak_tflops(line["device"], "bf16")
    tag = case["tag"] if "fp8" in case["tag"] else f"bf16 {case['tag']}".strip()
    return Row(
        size=Path(case["size"]).stem if case["size"].endswith(".toml") else case["size"],
        name=f"ours {tag}" if case["kind"] == "ours" else case["kind"],
        micro_batch=case["micro_batch"],
        tokens_per_second=rate,
        spread=(max(seconds) - min(seconds)) / middle,
        tflops=tflops,
        mfu=tflops / peak if peak else None,
        of_ceiling=tflops / ceiling if ceiling else None,
        peak_gib=result.get("peak_gib"),
        breakdown=result.get("breakdown", {}),
    )


def _ceiling_words(lines: list[dict[str, Any]]) -> str:
    found = {name: ceiling_tflops(lines, name) for name in ("bf16", "fp8")}
    words = [f"{name} {rate:,.1f}" for name, rate in found.items() if rate]
    return f"GEMM ceiling, TFLOP/s: {', '.join(words) or 'not measured'}."


def _speed_table(rows: list[Row]) -> list[str]:
    table = [
        "| size | run | micro-batch | tokens/s | spread | model TFLOP/s | MFU | of ceiling | peak GiB | / best peer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.size, not row.name.startswith("ours"), row.name, -row.micro_batch)):
        peer = _best_peer(rows, row.size)
        ratio = f"{row.tokens_per_second / peer.tokens_per_second:.2f}" if peer else ""
        table.append(
            f"| {row.size} | {row.name} | {row.micro_batch} | {row.tokens_per_second:,.0f} | {row.spread:.1%} | "
            f"{row.tflops:,.1f} | {_share(row.mfu)} | {_share(row.of_ceiling)} | "
            f"{'' if row.peak_gib is None else f'{row.peak_gib:.1f}'} | {ratio} |"
        )
    return table


def _breakdown_table(rows: list[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.breakdown))
    if not names:
        return ["No step was profiled."]
    table = [
        "Shares of one profiled step (profiling makes the host slower; the device's own times are what counts):",
        "",
        "| size | run | micro-batch | " + " | ".join(names) + " |",
        "|---" * (len(names) + 3) + "|",
    ]
    for row in rows:
        total = sum(row.breakdown.values())
        if total:
            shares = " | ".join(f"{row.breakdown.get(name, 0) / total:.1%}" for name in names)
            table.append(f"| {row.size} | {row.name} | {row.micro_batch} | {shares} |")
    return table


def _goals(rows: list[Row]) -> list[str]:
    """What was to be reached, beside what was measured; only where there is a measurement."""
    found = []
    for size in dict.fromkeys(row.size for row in rows):
        ours, fp8, peer = best(rows, size, "ours bf16"), best(rows, size, "ours fp8"), _best_peer(rows, size)
        if ours and ours.mfu is not None and size in GOAL_MFU:
            found.append((f"{size}: MFU of {GOAL_MFU[size]:.0%}", _share(ours.mfu), ours.mfu >= GOAL_MFU[size]))
        if ours and peer:
            ratio = ours.tokens_per_second / peer.tokens_per_second
            found.append((f"{size}: {GOAL_PEER:.2f} × {peer.name}", f"{ratio:.2f}", ratio >= GOAL_PEER))
        if ours and fp8 and size == "gpt3-2.7b":
            ratio = fp8.tokens_per_second / ours.tokens_per_second
            found.append((f"{size}: fp8 {GOAL_FP8:.2f} × bf16", f"{ratio:.2f}", ratio >= GOAL_FP8))
    lines = [f"| {goal} | {measured} | {'yes' if met else 'no'} |" for goal, measured, met in found]
    return ["| goal | measured | met |", "|---|---|---|", *lines] if lines else ["No goal can be told from this yet."]


def _curves(lines: list[dict[str, Any]]) -> list[str]:
    """fp8's losses against those of bf16, beside those of another seed."""
    curves = {line["case"]["tag"]: line["result"]["losses"] for line in lines if "losses" in line["result"]}
    wanted = [curves.get(f"curve-{name}") for name in ("bf16", "fp8", "seed")]
    if None in wanted:
        return ["Loss curves of bf16, fp8 and another seed: not all three are there."]
    bf16, fp8, seed = (losses[-_SETTLED:] for losses in wanted if losses)
    away = statistics.mean(one - other for one, other in zip(fp8, bf16, strict=True))
    of_seed = [one - other for one, other in zip(seed, bf16, strict=True)]
    noise = max(abs(statistics.mean(of_seed)), 2 * statistics.stdev(of_seed) / len(of_seed) ** 0.5)
    return [
        f"Loss curves, last {len(bf16)} of {len(wanted[0] or [])} steps: fp8 minus bf16 {away:+.4f} nats; noise, from "
        f"another seed, {noise:.4f}: fp8 is {'within' if abs(away) <= noise else 'NOT within'} it."
    ]


def _best_peer(rows: list[Row], size: str) -> Row | None:
    found = [row for peer in PEERS if (row := best(rows, size, peer))]
    return max(found, key=lambda row: row.tokens_per_second, default=None)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
