"""Long documents come in parts that joined are the document, in bounded memory, and with the errors of short ones."""

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.data import documents_long
from megagpt.data.corpus_formats import json_text, utf8_bytes
from megagpt.data.documents import ReadReport, read_documents
from megagpt.data.sources import Sizes
from megagpt.errors import DataError
from tests.unit.data.test_sources import memory_peak, property_test

TINY = Sizes(chunk_bytes=1, long_line_bytes=1)
texts = st.text(
    st.sampled_from('ab\\"/{}[]:,\r\n\t é中😀\U0010ffff') | st.characters(exclude_categories=["Cs"]), max_size=60
)
lines = st.builds(
    lambda before, text, after, ascii_only, space: json.dumps(
        {**before, "text": text, **after}, ensure_ascii=ascii_only, separators=("," + space, space + ":" + space)
    ),
    st.dictionaries(
        texts.filter(lambda key: key != "text"), texts | st.lists(texts | st.just({"text": 1})), max_size=2
    ),
    texts,
    st.dictionaries(texts.filter(lambda key: key != "text"), texts, max_size=2),
    st.booleans(),
    st.sampled_from(["", " ", "\t "]),
)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_long, "_WINDOW_BYTES", 16)


def joined(path: Path, on_error: Any = "raise", sizes: Sizes = TINY) -> tuple[list[str], ReadReport]:
    report = ReadReport()
    found, parts = [], ""
    for document in read_documents([str(path)], on_error=on_error, report=report, sizes=sizes):
        assert document.num_bytes == len(document.text.encode()) <= 48 or sizes != TINY
        parts += document.text
        if document.is_end:
            found.append(parts)
            parts = ""
    assert parts == ""
    assert report.num_documents == len(found)
    return found, report


@property_test
@given(st.lists(lines, min_size=1, max_size=3))
def test_long_lines(tmp_path: Path, given_lines: list[str]) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(given_lines), encoding="utf-8", newline="")
    assert joined(path)[0] == [json.loads(line)["text"] for line in given_lines]


def test_backslashes_before_a_quote(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    for number in (0, 1, 15, 16, 17, 40, 5000):
        text = "\\" * number + '"' + "\\" * number
        path.write_text(json.dumps({"a\\": [text, '"'], "text": text, "b": text}))
        assert joined(path)[0] == [text]


@property_test
@given(lines, st.data())
def test_no_damaged_long_line_passes_that_a_short_one_would_not(tmp_path: Path, line: str, data: st.DataObject) -> None:
    raw = bytearray(line.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b"\\", b'"', b"\xff", b"}", b"u", b"\0"])
        )
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + bytes(raw))
    found, report = joined(path, "skip")
    expected = json_text(bytes(raw), "text")
    good = isinstance(expected, str) and isinstance(utf8_bytes(expected), int)
    if len(found) == 2:
        assert (good, found[1]) == (True, expected)
    elif raw.strip():
        assert report.skipped == {"unreadable long line": 1}
        repeated = raw.count(b'"text"') != 1 or b"\\u" in raw
        assert not good or repeated, "a good line with its key once and plainly is read"


@pytest.mark.parametrize(
    "line",
    [b'{"text": 7, "a": "aaaaaaaaaa"}', b'{"a": {"text": "b"}}', b'["text", "a"]', b'{"text": "ab\\ud800"}', b'"text"',
     b'{"text": "a", "text": "b"}', b'{"text": "a\tb"}', b'{"text": "\xff"}', b"[" * 100_000, b'{"text": "a"'],
)  # fmt: skip
def test_bad_long_lines(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n" + b" " * 40 + b'\n{"text": "good"}\n')
    found, report = joined(path, "skip")
    assert found == ["good", "good"]
    assert report.skipped == {"unreadable long line": 1}
    message = rf"^{path}:3: the line of {len(line) + 1} bytes is no JSON object with a text under 'text' \(in a line th"
    with pytest.raises(DataError, match=message):
        joined(path)


@property_test
@given(texts, st.booleans())
def test_long_texts(tmp_path: Path, text: str, bom: bool) -> None:
    path = tmp_path / "c.txt"
    path.write_text("\ufeff" * bom + text, encoding="utf-8", newline="")
    assert joined(path)[0] == [text.removeprefix("\ufeff" * (not bom)).replace("\r\n", "\n")]


@pytest.mark.parametrize("sizes", [TINY, Sizes()])
def test_a_long_text_that_is_not_utf8(tmp_path: Path, sizes: Sizes) -> None:
    path = tmp_path / "c.txt"
    for content, line, byte in (
        ("\ufeff一\n二".encode() + b"\n ab\xffcd\n", 3, 11),
        (b"a" * 15 + "中".encode()[:2] + b"\nbc", 1, 15),
        ("一\n".encode() * 20 + b"\xe4\xb8", 21, 80),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"^{path}:{line}: invalid UTF-8 at byte {byte} of the file \(0x"):
            joined(path, sizes=sizes)


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl", "c.jsonl.gz", "-"])
def test_memory_of_a_long_document(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    text = "一段文字 and more \\ 😀\n" * 1_200_000
    content = (text if name == "c.txt" else json.dumps({"id": 1, "text": text}, ensure_ascii=False)).encode()
    assert len(content) > 30_000_000
    path = tmp_path / name
    if name == "-":
        (tmp_path / "input").write_bytes(content)
        monkeypatch.setattr(sys, "stdin", open(tmp_path / "input"))  # noqa: SIM115
        path = Path("-")
    else:
        path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    at = 0
    del content
    with memory_peak() as peak:
        for document in read_documents([str(path)]):
            assert text.startswith(document.text, at)
            at += len(document.text)
        assert peak() < (16_000_000 if name in ("c.jsonl.gz", "-") else 5_000_000)  # of a stream 8 MiB are held
    assert at == len(text)
    assert [entry for entry in os.listdir(tmp_path) if entry.startswith(("megagpt-", "tmp"))] == []
