"""The table of what works together is what the plan says today, and stands in docs/layouts.md."""

from itertools import combinations

import pytest

from megagpt import plan_composition
from megagpt.errors import ConfigError
from megagpt.plan_composition import MECHANISMS, PAGE, composition_table, page_with_table, refusals

BY_NAME = {mechanism.name: mechanism for mechanism in MECHANISMS}


def test_the_page_has_the_table_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_with_table(page) == page, "the plan's rules have changed: run python -m megagpt.plan_composition"


def test_every_mechanism_works_alone() -> None:
    assert {name: refusals(mechanism) for name, mechanism in BY_NAME.items() if refusals(mechanism)} == {}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("tensor", "context"),
        ("sequence parallel", "ZeRO 2"),
        ("sequence parallel", "ZeRO 3"),
        ("pipeline, interleaved", "ZeRO 1"),
        ("pipeline, interleaved", "uneven stages"),
        ("context", "pipeline, 1F1B"),
        ("context", "documents kept apart"),
        ("optimizer in host memory", "ZeRO 1"),
        ("parameters in host memory", "ZeRO 3"),
        ("recompute every 2nd layer", "pipeline, 1F1B"),
        ("fp16", "ZeRO 3"),
    ],
)
def test_what_works_together(first: str, second: str) -> None:
    assert refusals(BY_NAME[first], BY_NAME[second]) == []


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("pipeline, 1F1B", "ZeRO 2", "before the tied embedding's gradients are summed over the two ends"),
        ("pipeline, interleaved", "ZeRO 3", "before the tied embedding's gradients are summed over the two ends"),
        ("uneven stages", "parameters in files", "before the tied embedding's gradients are summed over the two ends"),
        ("bf16", "ZeRO 0", "DeepSpeed adds 16-bit gradients up in fp32 with ZeRO alone"),
        ("optimizer in host memory", "ZeRO 0", "needs optimizer state that ZeRO partitions"),
        ("parameters in host memory", "ZeRO 2", "needs parameters that ZeRO 3 partitions"),
    ],
)
def test_what_does_not_and_why(first: str, second: str, reason: str) -> None:
    (problem,) = refusals(BY_NAME[first], BY_NAME[second])
    assert reason in problem
    assert "(command line)" not in problem


def test_every_pair_and_every_reason_is_in_the_table() -> None:
    table = composition_table()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    marks = [cell.strip() for row in rows[1:] for cell in row.split("|")[3:-1] if cell.strip()]
    pairs = list(combinations(MECHANISMS, 2))
    assert len(marks) == len(pairs)
    alternatives = sum(first.axis == second.axis for first, second in pairs)
    refused = sum(first.axis != second.axis and bool(refusals(first, second)) for first, second in pairs)
    assert marks.count("·") == alternatives
    assert sum(mark.startswith("no ") for mark in marks) == refused
    for first, second in pairs:
        assert first.axis == second.axis or all(reason in table for reason in refusals(first, second))


def test_a_page_without_marks_is_told(tmp_path, monkeypatch, capsys) -> None:
    with pytest.raises(ConfigError, match=r"the page has no lines <!-- begin: .* and <!-- end -->; put them where"):
        page_with_table("# Layouts\n")
    page = tmp_path / "layouts.md"
    monkeypatch.setattr(plan_composition, "PAGE", page)
    assert plan_composition.main() == 2
    assert "No such file" in capsys.readouterr().err
    page.write_text("a <!-- begin: written by python -m megagpt.plan_composition --> old <!-- end --> b")
    assert plan_composition.main() == 0
    assert page.read_text().startswith("a <!-- begin: written by python -m megagpt.plan_composition -->\n\n|  |")
    assert "old" not in page.read_text()
