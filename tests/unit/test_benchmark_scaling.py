"""benchmarks/scaling.py: on a tiny model it measures what it says, and its tables say what was measured."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import scaling


def test_a_task_on_one_rank() -> None:
    """Two cases that take turns in one process."""
    cases = [scaling.SMALL, scaling.SMALL._replace(layers=1)]
    task = {"cases": [case._asdict() for case in cases], "extra": [], "rounds": 2}
    found = scaling.in_ranks(1, 1, task)
    assert [case["layers"] for case in found] == [2, 1]
    assert all(case["counted"] == [case["model"]] for case in found)
    assert all(len(case["seconds"]) == 2 and min(case["seconds"]) > 0 for case in found)
    lines = list(scaling.table_of_sweeps({"depth": found}))
    assert len(lines) == 4
    assert " | 1.000000 | " in lines[-1]
    assert json.loads(json.dumps(found)) == found


def test_sweeps_change_one_number_and_keep_the_tokens() -> None:
    for name, cases in scaling.sweeps(scaling.BASE).items():
        assert scaling.BASE in cases
        assert len({case.length * case.sequences for case in cases}) == 1, name
        for case in cases:
            changed = [field for field in case._fields if getattr(case, field) != getattr(scaling.BASE, field)]
            assert len(changed) <= (2 if name == "sequence length" else 1), (name, changed)


def test_the_share_of_waiting() -> None:
    """The first step, which nothing precedes, is left out."""
    waits = {"ahead": [9.0, 0.001, 0.003], "in place": [9.0, 0.1, 0.3]}
    steps = {"ahead": [9.0, 1.0, 1.0], "in place": [9.0, 1.0, 1.0]}
    (_, _, line) = scaling.table_of_stalls([{"slow_seconds": 0.2, "waits": waits, "steps": steps}])
    assert line == "| 200 ms | 1000 ms | 2.000 ms | 0.20% | 200.000 ms | 20.00% |"


def test_shares_of_ranks() -> None:
    case = {"counted": [30, 10], "model": 40, "seconds": [2.0]}
    assert list(scaling.table_of_ranks({"pipeline 2": case}))[-1] == (
        f"| pipeline 2 | {1:.6f} | 75.0%, 25.0% | 2.000 | {40 / 2 / 1e9:.1f} |"
    )


@pytest.mark.parametrize("name", scaling.RANKS)
def test_layouts_fit_both_models(name: str) -> None:
    """Each layout's plan can be made for the tiny and for the measured model."""
    from megagpt.config_file import load_config
    from megagpt.plan import make_plan

    num_ranks, _, extra = scaling.RANKS[name]
    for case in (scaling.SMALL, scaling.BASE):
        plan = make_plan(load_config(None, [*case.arguments(), *extra]), num_ranks, None)
        assert plan.layout.world_size == num_ranks
