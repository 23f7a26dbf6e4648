"""`megagpt plan --draw`: the files, what is refused, and that nothing in a picture covers or leaves anything."""

import sys

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from megagpt import plan_draw
from megagpt.config_file import load_config
from megagpt.plan import make_plan
from megagpt.plan_cli import run_plan_command
from megagpt.plan_draw import Window, schedule_name, windows
from megagpt.plan_schedule import PassCosts, pass_costs, plan_timeline

SMALL = [
    *("--model.num_heads=16", "--model.hidden_size=1024", "--model.vocab_size=50257", "--train.warmup_tokens=0"),
    *("--train.steps=3", "--train.batch_tokens=16384"),
]
FOUR = [*SMALL, "--model.num_layers=24", "--parallel.pipeline=4"]
UNEVEN = [*SMALL, "--model.num_layers=22", "--parallel.pipeline=4", "--parallel.virtual_stages=2"]
PLANS = {
    "one rank": (None, [*SMALL, "--model.num_layers=5"], 1),
    "1F1B": (None, FOUR, 4),
    "interleaved": (None, [*FOUR, "--parallel.virtual_stages=2"], 4),
    "uneven": (None, UNEVEN, 4),
    "many chunks": (None, [*FOUR, "--parallel.pipeline=2", "--parallel.virtual_stages=12"], 2),
    "175B": ("gpt3-175b", [], 1024),
    "175B interleaved": ("gpt3-175b", ["--parallel.virtual_stages=6", "--train.batch_ramp_tokens=0"], 1024),
}


def plan_of(name):
    config, arguments, num_gpus = PLANS[name]
    return make_plan(load_config(config, arguments), num_gpus, None)


def timeline_of(plan):
    layout = plan.layout
    costs = pass_costs(plan.spec, layout, plan.config.train)
    return plan_timeline(layout.pipeline, layout.virtual_stages, plan.batches.stages[-1].num_micro_batches, costs)


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF-"), (".PNG", b"\x89PNG")]
)
def test_the_command_draws(suffix, magic, tmp_path, capsys):
    path = tmp_path / "made" / f"schedule{suffix}"
    command = ["gpt3-base", "--gpus", "2", "--parallel.pipeline=2", "--train.precision=fp32", "--draw", str(path)]
    assert run_plan_command(command) == 0
    assert path.read_bytes().startswith(magic)
    assert f"wrote {path}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["schedule.gif", "schedule", "schedule.png.txt"])
def test_other_suffixes_are_refused_before_anything_is_planned(name, tmp_path, capsys):
    path = tmp_path / name
    assert run_plan_command(["no-such-configuration", "--draw", str(path)]) == 2
    assert capsys.readouterr().err == f"error: --draw {path} must end in .png, .svg or .pdf\n"


def test_without_matplotlib(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run_plan_command(["gpt3-base", "--draw", str(tmp_path / "schedule.png")]) == 2
    error = capsys.readouterr().err
    assert "error: --draw needs the package matplotlib, which cannot be imported here (" in error
    assert "pip install 'megagpt[draw]'" in error


def test_a_file_that_cannot_be_written(tmp_path, capsys):
    path = tmp_path / "schedule.png"
    path.mkdir()
    assert run_plan_command(["gpt3-base", "--gpus", "2", "--draw", str(path)]) == 2
    assert capsys.readouterr().err == f"error: --draw {path} cannot be written: Is a directory; choose another file\n"


def test_a_long_step_is_drawn_at_its_ends():
    timeline = plan_timeline(4, 1, 1000, PassCosts((1.0,) * 4, (2.0,) * 4))
    assert windows(timeline, 1.0, 3009) == [Window(0.0, 3009.0)]
    first, last = windows(timeline, 1.0, 3008)
    assert first.start == 0.0
    assert last.end == timeline.total == 3009.0
    for events in timeline.ranks:
        seen = [event for event in events if event.kind == "backward" and event.end <= first.end]
        assert len(seen) >= 9
        seen = [event for event in events if event.kind == "forward" and event.start >= last.start]
        assert len(seen) >= 9
    # where the two ends would meet, nothing is left out
    short = plan_timeline(4, 1, 12, PassCosts((1.0,) * 4, (2.0,) * 4))
    assert windows(short, 1.0, 10) == [Window(0.0, short.total)]


@pytest.mark.parametrize("name", PLANS)
def test_nothing_is_cut_or_covered(name):
    """Words lie inside the picture and apart from one another; a number lies inside its box."""
    plan = plan_of(name)
    figure = plan_draw._figure(plan, timeline_of(plan))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    words = [text for text in figure.texts if text.get_text()]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            words += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    words += figure.legends[0].get_texts()
    visible = [word for word in words if word.get_visible() and word.get_text()]
    boxes = [word.get_window_extent(renderer) for word in visible]
    for box, word in zip(boxes, visible, strict=True):
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, word.get_text()
    tall = [box.padded(-0.5) for box in boxes]
    assert all(box.count_overlaps(tall) <= 1 for box in tall)
    rows = [axes.get_window_extent(renderer) for axes in figure.axes]
    around = [*figure.texts, *figure.legends[0].get_texts()]
    assert not any(word.get_window_extent(renderer).count_overlaps(rows) for word in around)
    numbers = 0
    for axes in figure.axes:
        bars = [path.get_extents() for collection in axes.collections for path in collection.get_paths()]
        spans = {(round((b.x0 + b.x1) / 2, 6), round((b.y0 + b.y1) / 2)): b for b in bars}
        for text in axes.texts:
            numbers += 1
            x, y = text.get_position()
            bar = spans[round(x, 6), y].transformed(axes.transData)
            extent = text.get_window_extent(renderer)
            assert bar.x0 <= extent.x0
            assert extent.x1 <= bar.x1
            assert bar.ymin <= extent.ymin
            assert extent.ymax <= bar.ymax
    assert numbers >= 12


def test_words_of_the_picture():
    plan = plan_of("uneven")
    figure = plan_draw._figure(plan, timeline_of(plan))
    title, numbers, label = [text.get_text() for text in figure.texts]
    assert title == "gpt on 4 GPUs: tensor 1 × pipeline 4 × data 1; interleaved 1F1B, 2 chunks a rank"
    assert numbers.startswith("8 micro-batches of 1 sequence a step; bubble, waiting over computing: ")
    assert numbers.endswith("; with equal chunks it would be (p − 1) / (v·m) = 18.8%")
    assert label == "time in forward passes of one decoder layer, by FLOPs; sending takes no time"
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "rank 0: 2 × 3 layers"
    assert names[3] == "rank 3: 3 + 1 layer, head"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["forward, chunk 0", "backward, chunk 0", "forward, chunk 1", "backward, chunk 1", "waiting"]


def test_words_of_a_step_that_is_cut():
    plan = plan_of("175B")
    figure = plan_draw._figure(plan, timeline_of(plan))
    assert figure.texts[0].get_text() == "gpt3-175b on 1,024 GPUs: tensor 8 × pipeline 16 × data 8; 1F1B"
    assert figure.texts[2].get_text().endswith("sending takes no time; 468 to 7,140 is left out")
    assert len(figure.axes) == 2


def test_names_of_schedules():
    names = {name: schedule_name(plan_of(name)) for name in ("one rank", "1F1B", "interleaved")}
    assert names == {
        "one rank": "no pipeline",
        "1F1B": "1F1B",
        "interleaved": "interleaved 1F1B, 2 chunks a rank",
    }
