"""sessions.jsonl, state.json and the small files of a run folder: what is written reads back, damage is passed over."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from megagpt.durable import replace_file
from megagpt.training.run_files import CarefulWriter, append_line, record_from, seconds_since, utc_now
from megagpt.training.run_record import (
    SESSIONS_FILE,
    SessionEnd,
    SessionStart,
    ending_state,
    read_sessions,
    write_session_end,
    write_session_start,
)
from megagpt.training.run_state import STATE_FILE, RunState, StateWriter, read_state

TIME = "2026-11-23T12:00:00+00:00"
START = SessionStart(1, TIME, "node1", 7, 2, "data 2", 0, 10, None, None, "0.1.0", "abc", changed=("train.lr",))
END = SessionEnd(1, TIME, 10, "complete", 0)
STATE = RunState("running", 1, 3, 10, TIME, "node1", 7, loss=4.5)


def test_sessions_read_back_in_their_order(tmp_path: Path) -> None:
    write_session_start(tmp_path, START)
    write_session_end(tmp_path, END)
    second = replace(START, session=2, first_step=10, continued_from="step-00000010")
    write_session_start(tmp_path, second)
    assert [(session.start, session.end) for session in read_sessions(tmp_path)] == [(START, END), (second, None)]


def test_a_session_that_begins_elsewhere_than_it_said(tmp_path: Path) -> None:
    elsewhere = replace(START, first_step=4, continued_from="step-00000004")
    for start in (START, elsewhere):
        write_session_start(tmp_path, start)
    write_session_end(tmp_path, END)
    assert read_sessions(tmp_path) == [(elsewhere, END)]


def test_a_line_that_was_cut_short_costs_no_other(tmp_path: Path) -> None:
    write_session_start(tmp_path, START)
    with (tmp_path / SESSIONS_FILE).open("a") as file:
        file.write('{"event": "end", "sess')
    write_session_start(tmp_path, replace(START, session=2))
    assert [session.start.session for session in read_sessions(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "line",
    ["", "[]", "null", "\x00\x00", '{"event": "start"}', json.dumps({"event": "start", **asdict(START), "steps": "x"})],
)
def test_foreign_lines_are_passed(tmp_path: Path, line: str) -> None:
    append_line(tmp_path / SESSIONS_FILE, line)
    assert read_sessions(tmp_path) == []


def test_fields_of_a_newer_megagpt_are_left_out() -> None:
    values = {**asdict(END), "new": 1}
    assert record_from(SessionEnd, values) == END
    del values["reason"]
    assert record_from(SessionEnd, values) is None
    assert record_from(SessionStart, json.loads(json.dumps(asdict(START)))) == START, "a list becomes a tuple again"


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("complete", "complete"),
        ("interrupted", "stopped"),
        ("signal SIGUSR1 after step 7", "stopped"),
        ("error: the loss of step 3 is not finite", "failed"),
        ("hang: rank 3 did not answer", "failed"),
        ("lost a peer: rank 1", "failed"),
    ],
)
def test_states_of_ends(reason: str, state: str) -> None:
    assert ending_state(reason) == state


def test_a_state_is_written_every_few_seconds_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("megagpt.training.run_state.time.monotonic", lambda: clock[0])
    writer = StateWriter(tmp_path, STATE, CarefulWriter(pytest.fail))
    writer.step_done(4, 4.25)
    first = read_state(tmp_path)
    assert first is not None
    assert (first.state, first.step, first.loss) == ("running", 3, 4.5), "too early"
    clock[0] += 4
    writer.step_done(5, float("nan"))
    later = read_state(tmp_path)
    assert later is not None
    assert (later.step, later.loss) == (5, None), "JSON has no word for NaN"
    clock[0] += 4
    writer.measured(1000.0, 2.0)
    assert read_state(tmp_path) == replace(writer.state, time=read_state(tmp_path).time)  # type: ignore[union-attr]
    assert writer.state.eta_seconds == 10.0
    writer.end("failed")
    last = read_state(tmp_path)
    assert last is not None
    assert (last.state, last.step, last.eta_seconds) == ("failed", 5, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"state": "running"}', b"\xff\xfe"])
def test_a_state_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    assert read_state(tmp_path) is None


def test_a_full_disk_is_told_once_until_it_has_room_again(tmp_path: Path) -> None:
    told: list[str] = []
    writer, path = CarefulWriter(told.append), tmp_path / "state.json"

    def fail() -> None:
        raise OSError(28, "No space left on device")

    for _ in range(3):
        writer.write(path, fail)
    assert told == [
        f"{path} could not be written: No space left on device; training goes on; free space on the disk of "
        "run.folder or give this user rights there"
    ]
    writer.write(path, lambda: None)
    writer.write(path, fail)
    assert len(told) == 2


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", "one")
    replace_file(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "b", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_times() -> None:
    assert 0 <= (seconds_since(utc_now()) or -1) + 1 < 3
    assert seconds_since("yesterday") is None
