"""The text of a rehearsal, as tables for a terminal or a pipe. Computes nothing that the Rehearsal does not hold."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from megagpt.plan_layout import describe_axes
from megagpt.plan_memory import GIB
from megagpt.plan_schedule import Pass, ideal_bubble
from megagpt.rehearse.collectives import Collective
from megagpt.rehearse.run import Rehearsal
from megagpt.rehearse.storages import PARTS

_DURING = {"forward": 0, "backward": 1, "between": 2, "step": 3}
_SHOWN_STRETCHES = 12
MIB = 2**20


def print_rehearsal(rehearsal: Rehearsal, gpu_memory_gib: float | None, console: Console) -> None:
    """Prints what a rank holds and does in one step. `gpu_memory_gib`: the memory of one GPU, if it is known."""
    plan, place = rehearsal.plan, rehearsal.place
    layout = plan.layout
    axes = describe_axes(layout.tensor, layout.context, layout.pipeline, layout.data)
    context = f"context {place.context_rank}, " if layout.context > 1 else ""
    console.print(
        f"Rehearsal of rank {place.rank} of {layout.world_size} (tensor {place.tensor_rank}, {context}data "
        f"{place.data_rank}, pipeline {place.pipeline_rank}): {axes}, ZeRO {layout.zero_stage}",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    _print(
        console,
        "Model, schedule, engine and DeepSpeed are the run's own; tensors have no values, other ranks are made up.",
    )
    console.print()
    _print_parameters(rehearsal, console)
    console.print()
    _print_memory(rehearsal, gpu_memory_gib, console)
    console.print()
    _print_collectives(rehearsal, console)
    console.print()
    _print_order(rehearsal, console)


def _print_parameters(rehearsal: Rehearsal, console: Console) -> None:
    coverage, layout = rehearsal.coverage, rehearsal.plan.layout
    table = _table("Parameters built on each rank", "pipeline ranks", "tensor ranks", "parameters of each rank", left=2)
    for pipeline_ranks, sizes in _runs(coverage.by_position):
        for tensor_ranks, (size,) in _runs([(size,) for size in sizes]):
            table.add_row(pipeline_ranks, tensor_ranks, f"{size:,}")
    console.print(table)
    copies = []
    if coverage.tensor_copies:
        copies.append(f"{coverage.tensor_copies:,} in copies on tensor ranks (norms, biases, positions)")
    if coverage.tied_copies:
        copies.append(f"{coverage.tied_copies:,} in the copy of the token table at the pipeline's end")
    _print(
        console,
        f"All {layout.model_ranks} tensor × pipeline positions hold {coverage.held:,}"
        + (f", of which {' and '.join(copies)}" if copies else "")
        + f": the model's {coverage.model:,}, every element of every parameter once.",
    )
    zero = rehearsal.zero
    if zero is not None:
        _print(
            console,
            f"ZeRO {layout.zero_stage}: {zero.ranks} gradient ranks have shards of {zero.shard:,} that cover this "
            f"rank's {zero.parameters:,} parameters once, with {zero.padding:,} of padding.",
        )


def _print_memory(rehearsal: Rehearsal, gpu_memory_gib: float | None, console: Console) -> None:
    memory, planned = rehearsal.memory, rehearsal.plan.memory[rehearsal.place.pipeline_rank]
    plan_parts = dict(planned.parts)
    name, unit = ("GiB", GIB) if memory.peak.total_bytes >= GIB else ("MiB", MIB)
    table = _table(f"Memory of this rank's GPU, {name}", "part", "at the peak", "most of the part", "plan's estimate")
    for part in PARTS:
        row = (memory.peak.by_part[part], memory.most_by_part[part], plan_parts[part])
        table.add_row(part, *(f"{size / unit:.2f}" for size in row))
    table.add_section()
    table.add_row("sum", f"{memory.peak.total_bytes / unit:.2f}", "", f"{planned.total_bytes / unit:.2f}")
    console.print(table)
    building = f"; while building {rehearsal.building.total_bytes / unit:.2f} {name}"
    _print(console, f"The peak is during: {memory.peak.label}{building}.")
    if memory.host_bytes:
        _print(console, f"In host memory, for offloading: {memory.host_bytes / unit:.2f} {name} a rank.")
    if gpu_memory_gib is not None:
        share = memory.peak.total_bytes / GIB / gpu_memory_gib
        _print(console, f"The GPU has {gpu_memory_gib:g} GiB: the peak takes {share:.0%} of it.")
    _print(
        console,
        "Tensors are counted. CUDA context, NCCL's buffers, kernel workspaces and fragmentation come on top.",
    )


def _print_collectives(rehearsal: Rehearsal, console: Console) -> None:
    ran, whole = rehearsal.micro_batches_run, rehearsal.plan.batches.stages[-1].num_micro_batches
    table = _table(
        f"Collectives of this rank in one step of {whole} micro-batches",
        *("kind", "group", "ranks", "dtype", "during", "bytes each", "count", "MiB a step"),
        left=5,
    )
    ordered = sorted(rehearsal.collectives.items(), key=lambda item: _order(item[0]))
    during = ""
    for call, count in ordered:
        if during and call.during != during:
            table.add_section()
        during = call.during
        size = f"{call.num_bytes * count / MIB:,.1f}"
        cells = (call.kind, call.group, str(call.group_size), call.dtype, _when(call.during))
        table.add_row(*cells, f"{call.num_bytes:,}", f"{count:,}", size)
    console.print(table)
    totals: Counter[str] = Counter()
    for call, count in ordered:
        totals[call.group] += call.num_bytes * count
    sums = ", ".join(f"{group} {size / MIB:,.1f}" for group, size in sorted(totals.items(), key=lambda item: -item[1]))
    _print(console, f"MiB a step by group: {sums}. Bytes are of a call's largest buffer on this rank.")
    if len(ran) > 1:
        _print(
            console,
            f"Steps of {', '.join(map(str, ran))} micro-batches were run: all counts grow evenly with them, so those "
            f"of {whole} follow exactly.",
        )


def _print_order(rehearsal: Rehearsal, console: Console) -> None:
    plan, timeline = rehearsal.plan, rehearsal.timeline
    layout, whole = plan.layout, plan.batches.stages[-1].num_micro_batches
    console.print("Passes of this rank, in order", style="bold", highlight=False)
    number = max(event.micro_batch for event in rehearsal.order) + 1
    _print(console, f"{number} micro-batches: {describe_order(rehearsal.order, layout.virtual_stages)}.")
    _print(console, "They ran in the order that is planned.")
    if layout.pipeline > 1:
        ideal = ideal_bubble(layout.pipeline, layout.virtual_stages, whole)
        _print(
            console,
            f"Planned timeline of all {layout.pipeline} pipeline ranks, by FLOPs: {timeline.idle_share:.2%} of their "
            f"time is waiting, a bubble of {timeline.bubble:.2%}; (p - 1) / (v m) is {ideal:.2%}.",
        )


def describe_order(order: Sequence[Pass], virtual_stages: int) -> str:
    """`15 forward, 369 × (forward, backward), 15 backward`; interleaved, with the chunk of each stretch of passes."""
    if virtual_stages > 1:
        named = [f"{event.kind[0].upper()}{event.chunk}" for event in order]
        stretches = [f"{len(list(same))} {name}" for name, same in groupby(named)]
        if len(stretches) > 2 * _SHOWN_STRETCHES:
            left_out = len(stretches) - 2 * _SHOWN_STRETCHES
            stretches = [*stretches[:_SHOWN_STRETCHES], f"… {left_out} more …", *stretches[-_SHOWN_STRETCHES:]]
        return f"{', '.join(stretches)} (F forward, B backward, then the chunk)"
    kinds = [event.kind for event in order]
    warm_up = kinds.index("backward") - 1
    steady = sum(1 for i in range(warm_up, len(kinds) - 1, 2) if kinds[i : i + 2] == ["forward", "backward"])
    rest = len(kinds) - warm_up - 2 * steady
    assert kinds == ["forward"] * warm_up + ["forward", "backward"] * steady + ["backward"] * rest, kinds
    parts = [f"{warm_up} forward"] if warm_up else []
    parts.append(f"{steady} × (forward, backward)")
    return ", ".join([*parts, f"{rest} backward"] if rest else parts)


def _order(call: Collective) -> tuple[int, str, str, int]:
    return _DURING[call.during], call.group, call.kind, -call.num_bytes


def _when(during: str) -> str:
    return {"between": "between passes", "step": "start and end"}.get(during, during)


def _runs(rows: Sequence[tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    """Consecutive equal rows as (`3 to 14`, row)."""
    runs = []
    for row, group in groupby(enumerate(rows), key=lambda item: item[1]):
        numbers = [number for number, _ in group]
        runs.append((f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0]), row))
    return runs


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
