"""A picture of the planned pipeline: which forward and backward pass each pipeline rank runs when, and where it waits.

In: a RunPlan. Out: a PNG, SVG or PDF file. Drawn with matplotlib, which is imported when something is drawn. What is
drawn is computed in `plan_schedule.py`; nothing is measured.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megagpt.errors import ConfigError
from megagpt.plan import RunPlan
from megagpt.plan_layout import describe_axes
from megagpt.plan_schedule import TimedPass, Timeline, ideal_bubble, pass_costs, plan_timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_DOTS_PER_INCH = 150
_WIDTH_INCHES, _RIGHT_INCHES = 15.0, 0.25
_HEAD_INCHES, _FOOT_INCHES = 0.95, 1.15
_LETTER_INCHES = 0.066  # width of a letter in the names of ranks
_FONT_POINTS = 7.0
_MIN_FONT_POINTS = 4.5
_DIGIT_SHARE = 0.68  # width of a digit and its share of the margin, in font sizes
_MIN_BOX_POINTS = 3.2  # a forward pass narrower than this is a stripe: then the middle of the step is left out
_STEADY_PASSES = 10  # forward and backward passes shown between warm-up and gap, and between gap and cool-down
_MAX_LEGEND_CHUNKS = 8
_WAITING = "#ececec"
_SHADES = {"forward": ("#a9c9ec", "#123f73"), "backward": ("#f9c58d", "#9c3a05")}  # first and last chunk


class Window(NamedTuple):
    """A stretch of the time axis that is drawn."""

    start: float
    end: float


def draw_schedule(plan: RunPlan, path: Path) -> None:
    """Draw one step at the full batch into a file; its suffix says the format.

    Raises ConfigError where the suffix is another one, matplotlib is missing or the file cannot be written.
    """
    check_drawing(path)
    layout, num_micro_batches = plan.layout, plan.batches.stages[-1].num_micro_batches
    costs = pass_costs(plan.spec, layout, plan.config.train)
    timeline = plan_timeline(layout.pipeline, layout.virtual_stages, num_micro_batches, costs)
    figure = _figure(plan, timeline)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format=path.suffix.lower().lstrip("."))
    except OSError as error:
        raise ConfigError(f"--draw {path} cannot be written: {error.strerror}; choose another file") from error


def check_drawing(path: Path) -> None:
    """Raise ConfigError where this file's suffix cannot be drawn, or nothing can because matplotlib is missing."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--draw {path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--draw needs the package matplotlib, which cannot be imported here ({error}); "
            "pip install 'megagpt[draw]' (in this repository: pip install -e '.[draw]')"
        ) from None


def windows(timeline: Timeline, min_box: float, max_units: float) -> list[Window]:
    """The stretches of a step that are drawn: all of it, or its beginning and end where it is too long.

    `min_box`: the shortest forward pass; `max_units`: how many of them may stand side by side. The beginning reaches
    from the first pass until every rank has begun its backward passes and a few more; the end mirrors it.
    """
    whole = Window(0.0, timeline.total)
    if timeline.total <= max_units * min_box:
        return [whole]
    backward = [event for events in timeline.ranks for event in events if event.kind == "backward"]
    pair = max(event.end - event.start for event in backward) + min_box
    filled = max(next(event.start for event in events if event.kind == "backward") for events in timeline.ranks)
    drained = min(max(event.end for event in events if event.kind == "forward") for events in timeline.ranks)
    first = Window(0.0, filled + _STEADY_PASSES * pair)
    last = Window(drained - _STEADY_PASSES * pair, timeline.total)
    return [first, last] if first.end < last.start else [whole]


class _Scale(NamedTuple):
    """What a pass needs to know of the picture it is drawn into."""

    points_per_unit: float  # of time
    row_points: float
    num_chunks: int


def _figure(plan: RunPlan, timeline: Timeline) -> "Figure":
    from matplotlib.figure import Figure

    layout = plan.layout
    names = [_rank_name(plan, rank) for rank in range(layout.pipeline)]
    left_inches = 0.25 + _LETTER_INCHES * max(map(len, names))
    axis_points = 72 * (_WIDTH_INCHES - left_inches - _RIGHT_INCHES)
    shortest = min(event.end - event.start for event in timeline.ranks[0])
    shown = windows(timeline, shortest, axis_points / _MIN_BOX_POINTS)
    lengths = [window.end - window.start for window in shown]
    row_inches = min(0.55, max(0.28, 4.5 / layout.pipeline))
    height = row_inches * layout.pipeline + _HEAD_INCHES + _FOOT_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DOTS_PER_INCH, facecolor="white")
    left = left_inches / _WIDTH_INCHES
    figure.subplots_adjust(
        left=left,
        right=1 - _RIGHT_INCHES / _WIDTH_INCHES,
        top=1 - _HEAD_INCHES / height,
        bottom=_FOOT_INCHES / height,
        wspace=0.02,
    )
    scale = _Scale(axis_points / sum(lengths), 72 * row_inches, layout.virtual_stages)
    axes = figure.subplots(1, len(shown), width_ratios=lengths, squeeze=False, sharey=True)[0]
    for number, (part, window) in enumerate(zip(axes, shown, strict=True)):
        _draw_window(part, timeline, window, scale)
        _draw_frame(part, names, first=number == 0, last=number == len(shown) - 1)
    _write_words(figure, plan, timeline, shown, left)
    return figure


def _draw_window(axes: "Axes", timeline: Timeline, window: Window, scale: _Scale) -> None:
    """The passes in a window, a row for each rank, with the numbers of micro-batches where they have room."""
    for rank, events in enumerate(timeline.ranks):
        inside = [event for event in events if event.end > window.start and event.start < window.end]
        spans = [(event.start, event.end - event.start) for event in inside]
        shades = [_shade(event.kind, event.chunk, scale.num_chunks) for event in inside]
        widest = max((width for _, width in spans), default=0.0) * scale.points_per_unit
        axes.broken_barh([(window.start, window.end - window.start)], (rank - 0.42, 0.84), facecolor=_WAITING)
        axes.broken_barh(
            spans, (rank - 0.42, 0.84), facecolor=shades, edgecolor="white", linewidth=0.5 if widest > 8 else 0.25
        )
        for event in inside:
            if window.start <= event.start and event.end <= window.end:
                _write_number(axes, rank, event, scale)
    axes.set_xlim(window.start, window.end)
    axes.set_ylim(len(timeline.ranks) - 0.5, -0.5)


def _write_number(axes: "Axes", rank: int, event: TimedPass, scale: _Scale) -> None:
    text = str(event.micro_batch)
    room = (event.end - event.start) * scale.points_per_unit / (_DIGIT_SHARE * len(text) + 0.2)
    size = min(_FONT_POINTS, room, 0.6 * scale.row_points)
    if size >= _MIN_FONT_POINTS:
        dark = _is_dark(event.kind, event.chunk, scale.num_chunks)
        axes.text(
            *((event.start + event.end) / 2, rank, text),
            ha="center",
            va="center_baseline",
            fontsize=size,
            color="white" if dark else "black",
        )


def _draw_frame(axes: "Axes", names: Sequence[str], first: bool, last: bool) -> None:
    """Names of the ranks on the left, no box, and strokes where the time axis is broken."""
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelsize=8, labelleft=first)
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    strokes: dict[str, Any] = {"transform": axes.transAxes, "color": "black", "clip_on": False, "linestyle": "none"}
    strokes |= {"marker": [(-0.5, -1), (0.5, 1)], "markersize": 9, "markeredgecolor": "black", "markeredgewidth": 1}
    broken = ([] if first else [0]) + ([] if last else [1])
    axes.plot(broken, [0] * len(broken), **strokes)


def _rank_name(plan: RunPlan, rank: int) -> str:
    """`rank 0: 2 × 3 layers`, or with unequal chunks `rank 3: 3 + 2 layers, head`."""
    chunks = plan.layout.chunks(rank)
    layers = [str(chunk.num_layers) for chunk in chunks]
    equal = len(layers) > 1 and len(set(layers)) == 1
    count = f"{len(layers)} × {layers[0]}" if equal else " + ".join(layers)
    unit = "layer" if layers[-1] == "1" else "layers"
    return f"rank {rank}: {count} {unit}" + (", head" if chunks[-1].has_head else "")


def _write_words(figure: "Figure", plan: RunPlan, timeline: Timeline, shown: Sequence[Window], left: float) -> None:
    """Title, axis label and legend."""
    layout, height = plan.layout, figure.get_figheight()
    middle = (1 + left - _RIGHT_INCHES / _WIDTH_INCHES) / 2
    axes = describe_axes(layout.tensor, layout.context, layout.pipeline, layout.data)
    gpus = "1 GPU" if layout.world_size == 1 else f"{layout.world_size:,} GPUs"
    title = f"{plan.spec.name} on {gpus}: {axes}; {schedule_name(plan)}"
    figure.text(left, 1 - 0.32 / height, title, fontsize=12, weight="bold", va="center")
    figure.text(left, 1 - 0.64 / height, _numbers(plan, timeline), fontsize=9.5, va="center")
    label = "time in forward passes of one decoder layer, by FLOPs; sending takes no time"
    if len(shown) > 1:
        label += f"; {shown[0].end:,.0f} to {shown[1].start:,.0f} is left out"
    figure.text(middle, 0.68 / height, label, fontsize=9, ha="center", va="center")
    _draw_legend(figure, layout.virtual_stages, middle, height)


def _draw_legend(figure: "Figure", num_chunks: int, middle: float, height: float) -> None:
    """A column for each chunk, or for the first, a middle and the last of many; and one for waiting."""
    from matplotlib.patches import Patch

    chunks = range(num_chunks) if num_chunks <= _MAX_LEGEND_CHUNKS else (0, num_chunks // 2, num_chunks - 1)
    handles = [
        Patch(
            facecolor=_shade(kind, chunk, num_chunks),
            label=kind if num_chunks == 1 else f"{kind}, chunk {chunk}",
        )
        for chunk in chunks
        for kind in ("forward", "backward")
    ]
    figure.legend(
        handles=[*handles, Patch(facecolor=_WAITING, label="waiting")],
        loc="center",
        bbox_to_anchor=(middle, 0.3 / height),
        ncols=3 if num_chunks == 1 else len(chunks) + 1,
        frameon=False,
        fontsize=8,
        handlelength=1.2,
        columnspacing=1.2,
    )


def schedule_name(plan: RunPlan) -> str:
    """The schedule in words, such as `interleaved 1F1B with 2 chunks a rank`."""
    layout = plan.layout
    if layout.pipeline == 1:
        return "no pipeline"
    return "1F1B" if layout.virtual_stages == 1 else f"interleaved 1F1B, {layout.virtual_stages} chunks a rank"


def _numbers(plan: RunPlan, timeline: Timeline) -> str:
    layout, batch = plan.layout, plan.batches.stages[-1]
    sequences = "sequence" if batch.micro_batch_size == 1 else "sequences"
    text = f"{batch.num_micro_batches:,} micro-batches of {batch.micro_batch_size} {sequences} a step"
    if layout.pipeline == 1:
        return text
    ideal = ideal_bubble(layout.pipeline, layout.virtual_stages, batch.num_micro_batches)
    return (
        f"{text}; bubble, waiting over computing: {timeline.bubble:.1%}; with equal chunks it would be "
        f"(p − 1) / (v·m) = {ideal:.1%}"
    )


def _shade(kind: str, chunk: int, num_chunks: int) -> tuple[float, float, float]:
    """From light for a rank's first chunk to dark for its last; medium where there is one."""
    light, dark = (tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)) for color in _SHADES[kind])
    share = 0.35 if num_chunks == 1 else chunk / (num_chunks - 1)
    red, green, blue = (a + (b - a) * share for a, b in zip(light, dark, strict=True))
    return red, green, blue


def _is_dark(kind: str, chunk: int, num_chunks: int) -> bool:
    red, green, blue = _shade(kind, chunk, num_chunks)
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.55  # ITU-R BT.601 luma
