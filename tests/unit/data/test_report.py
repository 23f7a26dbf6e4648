"""The report shows what is in the data, is one safe file, and its labels keep apart."""

import errno
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megagpt.data import report_dataset
from megagpt.data.builder import build_dataset
from megagpt.data.cli import VERBS
from megagpt.data.dataset_stats import LengthCounts, length_bins
from megagpt.data.report import write_report
from megagpt.data.report_charts import Chart, Line, Shape, Tick, draw, nice_ticks
from megagpt.data.report_dataset import dataset_section
from megagpt.data.report_facts import gather_facts, sample_numbers
from megagpt.data.report_page import page
from megagpt.data.report_run import RunCorpus, RunFacts, RunPhase, corpus_epochs, run_section
from megagpt.data.report_words import percent, power_of_two, round_number, short, size, text
from megagpt.data.sidecar import Source
from megagpt.data.tool import run_tool
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.hashed import random_documents, sidecar_of, write_dataset, write_files, write_sidecar

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Checks that tags are closed in their order, and keeps tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.content = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.content += data


def read(content: str) -> Reader:
    reader = Reader()
    reader.feed(content)
    reader.close()
    assert reader.open == []
    return reader


def jsonl(path: Path, texts: list[str]) -> str:
    import json

    path.write_text("".join(json.dumps({"text": content}) + "\n" for content in texts))
    return str(path)


@pytest.fixture
def built(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> Path:
    chinese = jsonl(
        tmp_path / "三国 <b>.jsonl",
        ["话说天下大势，分久必合，合久必分。" * 3, "<script>alert(1)</script> & \u202e中文"],
    )
    english = jsonl(tmp_path / "english.jsonl", ["a b c", "the\n\nthe", "x" * 3000])
    build_dataset([chinese, english], tmp_path / "d", toy_tokenizer)
    return tmp_path / "d"


def test_the_report_shows_what_is_there(built: Path, tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    output = write_report([str(built)], tmp_path / "out" / "report.html", toy_tokenizer)
    reader = read(output.read_text(encoding="utf-8"))
    facts = gather_facts(str(built), toy_tokenizer)
    assert facts.sidecar is not None
    shown = " ".join(reader.content.split())
    for part in (
        f"tokens ({facts.num_tokens:,})",
        "documents (5)",
        "话说天下大势，分久必合，合久必分。",
        "<script>alert(1)</script> & \\u202e中文",
        "三国 <b>.jsonl",
        facts.sidecar.fingerprint,
        facts.sidecar.shards[0].hash,
        f"{facts.sidecar.sources[0].num_characters / (facts.sidecar.sources[0].num_tokens - 2):.3f}",
        f"{facts.sidecar.sources[1].text_bytes / (facts.sidecar.sources[1].num_tokens - 3):.3f}",
        f"longest {facts.lengths.quantile(1):,}",
        "1 with a hash each",
    ):
        assert part in shown, part
    assert shown.count("end of document") == 4
    assert facts.samples[-1].text == "x" * (facts.samples[-1].text.count("x")) + " …", "a long one is cut, and says so"


def test_the_report_is_one_file_that_runs_nothing(built: Path, tmp_path: Path) -> None:
    content = write_report([str(built), str(built)], tmp_path / "a.html", None).read_text(encoding="utf-8")
    reader = read(content)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in reader.tags}
    assert not re.search(r"https?://|url\(|@import|src=", content)
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert ("meta", {"charset": "utf-8"}) in reader.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in reader.tags)
    assert "prefers-color-scheme:dark" in content
    again = write_report([str(built), str(built)], tmp_path / "b.html", None).read_text(encoding="utf-8")
    assert content == again


def test_the_command(
    built: Path, tmp_path: Path, toy_tokenizer: SentencePieceTokenizer, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "r.html"
    output.write_text("an older report")
    assert run_tool(VERBS["report"], [str(built), "--output", str(output), "--tokenizer", toy_tokenizer.path]) == 0
    assert capsys.readouterr().out.startswith(f"{output} (")
    assert "话说天下大势" in output.read_text(encoding="utf-8")
    assert run_tool(VERBS["report"], [str(tmp_path / "none"), "--output", str(output)]) == 2
    assert "none.idx does not exist" in capsys.readouterr().err
    assert "话说天下大势" in output.read_text(encoding="utf-8"), "the page that was there stays"


def test_without_a_tokenizer_ids_are_shown(built: Path) -> None:
    facts = gather_facts(str(built), None)
    content = read(dataset_section(facts, decoded=False, titled=True)).content
    assert "Give --tokenizer to see their text." in content
    assert facts.samples[0].text in content
    assert all(number.isdigit() for number in facts.samples[0].text.split())


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    documents = random_documents(1, 9)
    write_files(tmp_path / "d", documents)
    content = read(page([gather_facts(str(tmp_path / "d"), None)], None)).content
    assert "What came from each file is not known: Megatron writes no record of it." in content
    assert "not known: there is no .json beside the dataset" in content
    assert "The tokenizer is not known." in content
    assert "never occur" not in content
    old = replace(
        sidecar_of(documents, [], [("x", 9)], skipped={"not <JSON>": 3}), sources=(Source("x", 1, 0, 0, 0, 0),)
    )
    write_sidecar(tmp_path / "d", old)
    content = read(page([gather_facts(str(tmp_path / "d"), None)], None)).content
    assert "What came from each file is not known: the dataset is of an older format." in content
    assert "no hashes: an older format" in content
    assert "3 · not <JSON>" in content
    assert "text in UTF-8" in content
    write_sidecar(tmp_path / "d", replace(old, text_bytes=0, num_characters=0))
    assert "text in UTF-8" not in read(page([gather_facts(str(tmp_path / "d"), None)], None)).content
    write_sidecar(tmp_path / "e", sidecar_of([], [], []))
    with pytest.raises(DataError, match="is the share of a task without documents: there is nothing to report"):
        gather_facts(str(tmp_path / "e"), None)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*r.html: .*; choose another output"):
        write_report([str(tmp_path / "d")], tmp_path / "file" / "r.html", None)


def test_a_full_disk_leaves_nothing(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"cannot write .*r.html: No space left on device; free space"):
        write_report([str(built)], tmp_path / "r.html", None)
    assert not list(tmp_path.glob("r.html*"))


def test_many_sources_and_shards_are_cut_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [[2] * (1 + number) + [1] for number in range(60)]
    sidecar = write_dataset(tmp_path / "d", documents, [10] * 6, [(f"dir/s{number:02}", 1) for number in range(60)])
    monkeypatch.setattr(report_dataset, "_SHOWN_SHARDS", 4)
    content = read(dataset_section(gather_facts(str(tmp_path / "d"), None), False, False)).content
    assert "41 other files" in content
    rest = sum(source.num_tokens for source in sidecar.sources[:41])
    assert f"{rest} {percent(rest / sidecar.num_tokens)} · 41 documents" in content
    assert "s41dir/" in content
    assert "s40dir/" not in content
    assert "and 2 more, in d.json" in content
    assert "s10 10 – s19 20" in content, "the origin of shard 1"


def test_samples_come_from_every_large_source() -> None:
    def source(name: str, documents: int, tokens: int) -> Source:
        return Source(name, None, documents, tokens, 1, 1)

    sources = [source("a", 1000, 90_000), source("none", 0, 0), source("b", 10, 9_000), source("c", 1, 50)]
    assert sample_numbers(1011, sources) == [
        (125, "a"), (375, "a"), (625, "a"), (875, "a"), (1005, "b"), (1010, "c"),
    ]  # fmt: skip
    many = [source(str(number), 5, number + 1) for number in range(20)]
    assert [name for _, name in sample_numbers(100, many)] == ["14", "15", "16", "17", "18", "19"]
    assert sample_numbers(2, []) == [(0, None), (1, None)]
    assert sample_numbers(3, [source("x", 1, 5), source("y", 2, 1)]) == [(0, "x"), (1, "y"), (2, "y")]


def test_bars_have_the_height_of_their_share(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", [[3, 1]] * 3 + [[3, 3, 3, 3, 3, 3, 3, 1]])
    facts = gather_facts(str(tmp_path / "d"), None)
    reader = read(dataset_section(facts, False, False))
    heights = [float(attributes["height"] or 0) for tag, attributes in reader.tags if tag == "rect"]
    assert max(heights) == pytest.approx(300 * 0.75 / 0.8)  # 75 % of the documents; the axis ends at 80 %
    assert sum(heights[::2]) == pytest.approx(300 / 0.8, abs=0.1)
    assert sum(heights[1::2]) == pytest.approx(300 / 0.8, abs=0.1)
    assert "2 tokens: 3 documents (75.0 %)" in reader.content
    table = "".join(reader.content.split("The numbers")[1].split("Where")[0].split())
    assert "22375.0%642.9%" in table, "from 2 to 2 tokens: 3 documents, 75.0 %, 6 tokens, 42.9 %"


@pytest.mark.parametrize("longest", [2, 9, 300, 5000, 10**5, 2**31 - 1])
def test_labels_of_the_length_axis_keep_apart_on_a_phone(tmp_path: Path, longest: int) -> None:
    write_dataset(tmp_path / "d", random_documents(1, 5))
    lengths = LengthCounts(np.array([1, longest]), np.array([3, 1]))
    facts = replace(
        gather_facts(str(tmp_path / "d"), None),
        lengths=lengths,
        bins=tuple(length_bins(lengths, 2)),
        num_documents=4,
        num_tokens=3 + longest,
    )
    chart = report_dataset._length_chart(facts)
    pixels = [290 * tick.place for tick in chart.x_ticks]
    widths = [7 * len(tick.label) for tick in chart.x_ticks]
    edges = [(place - width / 2, place + width / 2) for place, width in zip(pixels, widths, strict=True)]
    edges[0] = (pixels[0], pixels[0] + widths[0])  # the first label begins at the axis
    for (_, right), (left, _) in pairwise(edges):
        assert left > right + 2, [tick.label for tick in chart.x_ticks]
    assert all(0 <= shape.left <= shape.left + shape.width <= 1 + 1e-9 for shape in chart.shapes)


RUN = RunFacts(
    name="中文 <run>",
    num_steps=40,
    sequence_length=100,
    corpora=(RunCorpus("甲&", 50), RunCorpus("b", 1000)),
    phases=(RunPhase(100, (25, 75)), RunPhase(400, (150, 150))),
)


def test_the_blend_over_the_run() -> None:
    assert corpus_epochs(RUN) == [3.5, 0.225]
    reader = read(run_section(RUN))
    shapes = [attributes for tag, attributes in reader.tags if tag == "rect"]
    drawn = [(shape["x"], shape["y"], shape["width"], shape["height"]) for shape in shapes]
    assert drawn == [
        ("0.00", "225.00", "250.00", "75.00"),
        ("0.00", "0.00", "250.00", "225.00"),
        ("250.00", "150.00", "750.00", "150.00"),
        ("250.00", "0.00", "750.00", "150.00"),
    ]
    content = reader.content
    assert "40.0k tokens in 40 steps" in content
    assert "甲&, 0 to 10.0k tokens: 25.0 %" in content
    assert "new weights after 10.0k tokens" in content
    assert "17.5k 43.8 % of the run" in content
    lines = [attributes["points"] for tag, attributes in reader.tags if tag == "polyline"]
    assert lines[0] == "0.00,300.00 250.00,262.50 1000.00,37.50"  # 0, 0.5 and 3.5 epochs of an axis to 4


def test_one_corpus_shows_its_epochs_only() -> None:
    content = read(run_section(replace(RUN, corpora=RUN.corpora[:1], phases=(RunPhase(75, (75,)),)))).content
    assert "What the batches are made of" not in content
    assert "甲&: 1.50 epochs at the end" in content


def test_charts_escape_what_they_are_given() -> None:
    chart = Chart(
        shapes=[Shape(0, 0, 1, 1, 9, "<&>")],
        lines=[Line([(0, 0)], 1, "<l>")],
        x_ticks=[Tick(0, "<x>")],
        y_ticks=[Tick(1, "<y>")],
        x_meaning="<m>",
        summary='"<s>',
        marks=[Tick(0, "<k>")],
    )
    reader = read(draw(chart))
    for part in ("<&>", "<l>", "<x>", "<y>", "<m>", "<k>"):
        assert part in reader.content
    assert any(attributes.get("aria-label") == '"<s>' for _, attributes in reader.tags)
    assert any(attributes.get("fill") == "var(--c1)" for _, attributes in reader.tags), "colour 9 of 8"


@pytest.mark.parametrize(
    ("highest", "wanted"),
    [
        (0.27, [0, 0.1, 0.2, 0.3]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (60.26, [0, 20, 40, 60, 80]),
        (5, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_ticks_are_round_and_few(highest: float, wanted: list[float]) -> None:
    assert nice_ticks(highest) == pytest.approx(wanted)


def test_ticks_of_any_height() -> None:
    assert nice_ticks(0) == [0, 1]
    for highest in (
        10.0**exponent * factor for exponent in range(-5, 13) for factor in (1, 1.01, 2.5, 3.3, 5, 7.77, 9.99)
    ):
        ticks = nice_ticks(highest)
        assert 2 <= len(ticks) <= 6
        assert ticks[-1] >= highest * (1 - 1e-8)


def test_numbers_in_words() -> None:
    assert [short(value) for value in (0, 9_999, 10_000, 388_217, 999_900, 27_339_793, 1.5e9, 2e12)] == [
        "0", "9,999", "10.0k", "388k", "1.00M", "27.3M", "1.50G", "2.00T",
    ]  # fmt: skip
    assert [round_number(value) for value in (0, 500, 20_000, 250e6, 1e9, 1.5e9, 100_000)] == [
        "0", "500", "20k", "250M", "1G", "1.5G", "100k",
    ]  # fmt: skip
    assert [size(value) for value in (0, 999, 1500, 54_679_586, 999_999_999, 3.2e12)] == [
        "0 bytes", "999 bytes", "1.5 kB", "54.7 MB", "1.00 GB", "3.20 TB",
    ]  # fmt: skip
    assert [percent(value) for value in (0, 0.00001, 0.0012, 0.0994, 0.5, 1)] == [
        "0.00 %", "< 0.01 %", "0.12 %", "9.94 %", "50.0 %", "100.0 %",
    ]  # fmt: skip
    assert [power_of_two(value) for value in (1, 512, 1024, 65536, 1 << 21)] == ["1", "512", "1k", "64k", "2M"]
    assert text("<a>\u3000\x00\n\u202e👩\u200d🚀\ud800") == "&lt;a&gt;\u3000\\u0000\n\\u202e👩\u200d🚀\\ud800"
