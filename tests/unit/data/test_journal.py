"""The journal of a build: what is read back, torn lines, damage, locks."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from megagpt.data.journal import Committed, Finish, InputState, Journal, Part, Plan, Share
from megagpt.data.sidecar import Shard
from megagpt.errors import DataError

PLAN = Plan(
    inputs=(InputState("语料/a.jsonl", 10, 123), InputState("-", None, None), InputState("\udcff.txt", 1, 2)),
    shares=(Share("语料/a.jsonl", 0, None),),
    text_key="正文",
    on_error="raise",
    tokenizer_kind="sentencepiece",
    fingerprint="f" * 64,
    vocab_size=100,
    eod_id=1,
    task=0,
    num_tasks=1,
    chunk_bytes=5,
    long_line_bytes=6,
    shard_bytes=7,
)
SHARD = Committed(
    shard=Shard(0, 0, 0, 10, 2, 5, 8, "a" * 32, "b" * 32),
    parts=(Part(0, 0, 10, "a" * 32, False, 2, 5, 8, 4),),
    max_token_id=9,
    lengths_hash="c" * 32,
    skipped={"empty text": 2},
    first_skipped={"empty text": "语料/a.jsonl:3"},
    next_source=0,
    next_position=10,
    stored_bytes_read=10,
    last=False,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "d.journal"
    with Journal(path) as journal:
        for record in (PLAN, SHARD, SHARD):
            journal.append(record)
    return path


def test_what_was_written_is_read(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.read() == (PLAN, [SHARD, SHARD], None)
        journal.append(Finish(10, 20, 30))
        assert journal.read() == (PLAN, [SHARD, SHARD], Finish(10, 20, 30))
        journal.append(replace(PLAN, num_committed=1))
        assert journal.read().committed == [SHARD], "a plan says how many shards before it still count"
        journal.clear()
        assert journal.read() == (None, [], None)
        journal.remove()
    assert not path.exists()


def test_every_torn_last_line_is_dropped(path: Path) -> None:
    content = path.read_bytes()
    begin = content.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(begin, len(content)):
        path.write_bytes(content[:end])
        with Journal(path) as journal:
            assert journal.read() == (PLAN, [SHARD], None), end
            assert path.stat().st_size == begin
            journal.append(SHARD)
            assert journal.read().committed == [SHARD, SHARD]


def test_a_last_line_whose_blocks_were_not_written_is_dropped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-40] + b"\0" * 39 + b"\n")
    with Journal(path) as journal:
        assert journal.read().committed == [SHARD]


def test_what_follows_a_damaged_line_is_dropped(path: Path) -> None:
    """Lines that were written together may be torn anywhere; what they speak of is made again."""
    content = path.read_bytes()
    place = content.index(b'"num_tokens":5')
    path.write_bytes(content[: place + 13] + b"6" + content[place + 14 :])
    with Journal(path) as journal:
        assert journal.read() == (PLAN, [], None)
        assert path.stat().st_size == content.index(b"\n") + 1


def test_a_damaged_first_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"task":0', b'"task":1'))
    with Journal(path) as journal, pytest.raises(DataError, match=r"d.journal:1 is damaged, .* --restart"):
        journal.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format_version": 9}, "format version 9, not 1"), ({"colour": "red"}, "colour")],
)
def test_a_journal_of_another_version(path: Path, change: dict, message: str) -> None:
    import xxhash

    plan = json.loads(path.read_bytes().split(b"\n")[0])["record"]["plan"]
    body = json.dumps({"plan": {**plan, **change}}, separators=(",", ":"))
    path.write_text(f'{{"hash":"{xxhash.xxh3_128_hexdigest(body.encode())}","record":{body}}}\n')
    with Journal(path) as journal, pytest.raises(DataError, match=rf"another version of megagpt .*{message}.*restart"):
        journal.read()


def test_one_process_at_a_time(path: Path) -> None:
    with Journal(path), pytest.raises(DataError, match=r"another process is writing .*d.bin now; wait for it"):
        Journal(path)
    with Journal(path) as journal:
        assert len(journal.read().committed) == 2


def test_a_journal_that_is_removed_between_opening_and_locking(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other build ended meanwhile: a new journal is begun, not the removed file written."""
    import megagpt.data.journal as module

    real, calls = module.lock_exclusively, []

    def remove_first(file: int) -> bool:
        if not calls:
            path.unlink()
        calls.append(file)
        return real(file)

    monkeypatch.setattr(module, "lock_exclusively", remove_first)
    with Journal(path) as journal:
        assert journal.read() == (None, [], None)
        journal.append(PLAN)
    assert len(calls) == 2
    assert path.stat().st_size > 0


def test_a_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(DataError, match=r"d.journal cannot be locked \(Operation not supported\).*file system with"):
        Journal(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    with pytest.raises(DataError, match=r"cannot write .*file/d.journal: .*; choose another output"):
        Journal(tmp_path / "file" / "d.journal")
    assert os.listdir(tmp_path) == ["file"]
