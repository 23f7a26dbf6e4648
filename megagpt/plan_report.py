"""The text of `megagpt plan`: a RunPlan as tables, for a terminal or a pipe.

In: a RunPlan and a rich console. Nothing is computed here that the plan does not hold.
"""

from rich.console import Console
from rich.table import Table

from megagpt.config_text import show_value
from megagpt.plan import RunPlan
from megagpt.plan_batches import RampStage
from megagpt.plan_layout import describe_axes
from megagpt.plan_memory import GIB, GpuMemory

_SHOWN_ROWS = 16
_UNITS = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"))


def print_plan(plan: RunPlan, console: Console) -> None:
    """Prints the configuration with origins, parameters, stages, batches, cost and memory of a plan."""
    layout = plan.layout
    console.print(
        f"{plan.spec.name} on {layout.world_size} GPUs: "
        f"{describe_axes(layout.tensor, layout.context, layout.pipeline, layout.data)}, ZeRO {layout.zero_stage}",
        style="bold",
        highlight=False,
    )
    for table in (
        _configuration_table(plan),
        _totals_table(plan),
        _stages_table(plan),
        _batches_table(plan),
        _memory_table(plan),
    ):
        console.print()
        console.print(table)
    console.print(
        "Memory is an estimate; CUDA context, communication buffers, kernel workspaces and fragmentation come on top.",
        highlight=False,
        soft_wrap=True,
    )
    for note in plan.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def show_flops(flops: float) -> str:
    """A number of floating-point operations with a unit, such as `4.32 EFLOP`."""
    for size, unit in _UNITS:
        if flops >= size:
            return f"{flops / size:.2f} {unit}FLOP"
    return f"{flops:.0f} FLOP"


def _table(title: str, *columns: str, first_left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < first_left else "right", overflow="fold")
    return table


def _configuration_table(plan: RunPlan) -> Table:
    table = _table("Configuration", "key", "value", "origin", first_left=3)
    table.columns[0].no_wrap = True
    previous = ""
    for key, origin in plan.origins.items():
        section, _, field = key.partition(".")
        if previous and section != previous:
            table.add_section()
        previous = section
        value = show_value(getattr(getattr(plan.config, section), field))
        table.add_row(key, value.replace("[", r"\["), origin.replace("[", r"\["))
    return table


def _totals_table(plan: RunPlan) -> Table:
    table = _table("Totals", "what", "value")
    spec, flops, train = plan.spec, plan.flops, plan.config.train
    padding = spec.padded_vocab_size - spec.vocab_size
    table.add_row("parameters", f"{plan.parameters.total:,}")
    table.add_row(f"parameters without {padding} rows of vocabulary padding", f"{plan.parameters.without_padding:,}")
    table.add_row("steps", f"{plan.num_steps:,}")
    table.add_row("tokens of the run", f"{plan.batches.total_tokens:,}")
    table.add_row("tokens a step (full batch)", f"{train.batch_tokens:,}")
    table.add_row("model FLOPs a token: layers", show_flops(flops.layers))
    table.add_row("model FLOPs a token: attention (full S x S)", show_flops(flops.attention))
    table.add_row("model FLOPs a token: head", show_flops(flops.head))
    table.add_row("model FLOPs a token", show_flops(flops.total))
    table.add_row("for comparison, 6 N + 12 L H S a token", show_flops(flops.palm))
    table.add_row("model FLOPs a step (full batch)", show_flops(plan.flops_per_step))
    table.add_row("model FLOPs of the run", show_flops(flops.total * plan.batches.total_tokens))
    table.add_row("learning rate of the first and last step", _first_and_last_rate(plan))
    table.add_row("a checkpoint", f"{plan.checkpoint_bytes / 1e9:,.1f} GB")
    if plan.checkpoint_copy_bytes:
        copy = f"{plan.checkpoint_copy_bytes / GIB:.2f} GiB"
        table.add_row("host memory of each rank for its copy (checkpoint.asynchronous)", copy)
    return table


def _first_and_last_rate(plan: RunPlan) -> str:
    return f"{plan.learning_rate(0):.3g}, {plan.learning_rate(plan.num_steps - 1):.3g}"


def _stages_table(plan: RunPlan) -> Table:
    table = _table(
        "Stages", "pipeline rank", "chunk", "layers", "also", "parameters on each GPU of the rank", first_left=4
    )
    for stage in sorted(plan.layout.stages, key=lambda stage: (stage.pipeline_rank, stage.chunk)):
        last = stage.first_layer + stage.num_layers - 1
        ends = [name for name, here in (("embedding", stage.has_embedding), ("head", stage.has_head)) if here]
        table.add_row(
            str(stage.pipeline_rank),
            str(stage.chunk),
            f"{stage.num_layers}: {stage.first_layer} to {last}",
            ", ".join(ends),
            f"{plan.parameters.per_rank[stage.pipeline_rank]:,}" if stage.chunk == 0 else "",
        )
    return table


def _batches_table(plan: RunPlan) -> Table:
    title = "Batch ramp" if len(plan.batches.stages) > 1 else "Batch"
    table = _table(title, "from step", "steps", "sequences", "tokens a step", "micro-batches a rank", first_left=0)
    stages = plan.batches.stages
    if len(stages) <= _SHOWN_ROWS:
        shown: list[RampStage | None] = list(stages)
    else:
        shown = [*stages[:4], None, *stages[-3:]]
    for stage in shown:
        if stage is None:
            table.add_row("...", f"{len(stages) - 7} more sizes", "", "", "")
            continue
        steps = stage.num_steps if stage.num_steps is not None else max(0, plan.num_steps - stage.first_step)
        table.add_row(
            f"{stage.first_step:,}",
            f"{steps:,}",
            f"{stage.num_sequences:,}",
            f"{stage.num_sequences * plan.spec.sequence_length:,}",
            f"{stage.num_micro_batches} of {stage.micro_batch_size}",
        )
    return table


def _memory_table(plan: RunPlan) -> Table:
    names = [name for name, _ in plan.peak_memory.parts]
    rows: list[GpuMemory] = list(plan.memory)
    elsewhere = [
        name
        for name, used in (
            ("host memory", any(row.host_bytes for row in rows)),
            ("files", any(row.disk_bytes for row in rows)),
        )
        if used
    ]
    table = _table("Memory of each GPU, GiB", "pipeline rank", *names, "sum", *elsewhere)
    if len(rows) > _SHOWN_ROWS:
        kept = {0, plan.peak_memory.pipeline_rank, len(rows) - 1}
        rows = [row for row in rows if row.pipeline_rank in kept]
    for row in rows:
        fullest = " (fullest)" if len(rows) > 1 and row is plan.peak_memory else ""
        sizes = [f"{size / GIB:.2f}" for _, size in row.parts]
        beside = {"host memory": row.host_bytes, "files": row.disk_bytes}
        sizes += [f"{size / GIB:.2f}" for size in (row.total_bytes, *(beside[name] for name in elsewhere))]
        table.add_row(f"{row.pipeline_rank}{fullest}", *sizes)
    return table
