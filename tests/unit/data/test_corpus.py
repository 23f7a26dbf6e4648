"""Corpus readers: every format gives the same documents, and every kind of bad input its error."""

import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megagpt.data.corpus import corpus_files
from megagpt.data.documents import ReadReport, read_documents
from megagpt.errors import DataError

TEXTS = ["第一篇\n有两行", "", "second", "😀 third"]
JSONL = "".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode("utf-8")


def write_parquet(path: Path, column: pyarrow.Array, name: str = "text") -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(column))), name: column}), path)


def write_format(path: Path) -> None:
    if path.suffix == ".parquet":
        write_parquet(path, pyarrow.array(TEXTS))
    else:
        packers: dict[str, Callable[[bytes], bytes]] = {
            ".gz": gzip.compress,
            ".zst": zstandard.ZstdCompressor().compress,
            ".jsonl": bytes,
        }
        path.write_bytes(packers[path.suffix](JSONL))


def texts_of(*inputs: object) -> list[str]:
    return [document.text for document in read_documents([str(given) for given in inputs])]


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst", "c.parquet"])
def test_each_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_format(path)
    report = ReadReport()
    documents = list(read_documents([str(path)], report=report))
    assert [document.text for document in documents] == TEXTS
    assert [document.line for document in documents] == [1, 2, 3, 4]
    assert [document.num_bytes for document in documents] == [len(text.encode()) for text in TEXTS]
    assert {document.path for document in documents} == {str(path)}
    assert report.num_documents == 4


def test_several_members_and_frames_and_big_lines(tmp_path: Path) -> None:
    big = json.dumps({"text": "长" * 300_000}).encode() + b"\n"
    parts = [JSONL, big, JSONL.rstrip(b"\n")]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(map(zstandard.ZstdCompressor().compress, parts)))
    expected = [*TEXTS, "长" * 300_000, *TEXTS]
    assert texts_of(tmp_path / "a.jsonl.gz") == expected
    assert texts_of(tmp_path / "b.jsonl.zst") == expected


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=8))
def test_any_text_comes_through(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "c.jsonl.zst"
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    assert texts_of(path) == texts


def test_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n\r\n  \r\n"))
    documents = list(read_documents([str(path)]))
    assert [document.text for document in documents] == TEXTS
    assert [document.line for document in documents] == [1, 4, 7, 10]
    text = tmp_path / "c.txt"
    text.write_bytes(b"\xef\xbb\xbf" + "一\r\n二\n\n三".encode())
    assert texts_of(text) == ["一\n二\n\n三"]


def test_files_folders_globs_and_their_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden.txt", ".git/d.txt", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert texts_of(tmp_path) == ["a.txt", "b.txt", "sub/c.txt"]
    assert texts_of(tmp_path / "b.txt", tmp_path / "a.txt") == ["b.txt", "a.txt"]
    assert texts_of(tmp_path / "[ab].txt") == ["a.txt", "b.txt"]
    assert texts_of(tmp_path / "**" / "c.txt") == ["sub/c.txt"]
    assert [file.size_bytes for file in corpus_files([str(tmp_path / "a.txt")])] == [5]


def test_standard_input_is_jsonl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(JSONL)))
    documents = list(read_documents(["-"]))
    assert [document.text for document in documents] == TEXTS
    assert documents[0].path == "-"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(JSONL + b"oops\n")))
    with pytest.raises(DataError, match=r"^standard input:5: the line is not JSON"):
        list(read_documents(["-"]))
    assert corpus_files(["-"])[0].size_bytes is None


GOOD = b'{"text": "good"}\n'
BAD_LINES = [
    (b'{"text": "cut\n', "not JSON", r"the line is not JSON \(Unterminated string.*\); repair it, or"),
    (b'{"text": "a\x00b"}\n', "not JSON", r"the line is not JSON \(Invalid control character"),
    (b"[" * 100_000 + b"\n", "not JSON", r"the line is not JSON \("),
    (b'["a"]\n', "not a JSON object", r"the line is a JSON list, not an object such as \{\"text\""),
    (b'{"txt": "a", "id": 3}\n', "no key 'text'", r"there is no key 'text'; the keys are: 'txt', 'id'; name .*--text-"),
    (b"{}\n", "no key 'text'", r"there is no key 'text'; the keys are: none"),
    (b'{"text": 7}\n', "'text' is not text", r"'text' is int, not text; name another with --text-key"),
    (b'{"text": null}\n', "'text' is not text", r"'text' is null, not text"),
    (b'{"text": "\xff"}\n', "invalid UTF-8", r"invalid UTF-8 at byte 10 of the line \(0xff: .*\); convert"),
    (b'{"text": "ab\\ud800"}\n', "lone surrogate", r"the text has a lone surrogate U\+D800 at character 2"),
]


@pytest.mark.parametrize(("line", "reason", "message"), BAD_LINES)
def test_a_bad_line_is_named_or_counted(tmp_path: Path, line: bytes, reason: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(GOOD + line + GOOD + line)
    with pytest.raises(DataError, match=rf"^{path}:2: {message}"):
        list(read_documents([str(path)]))
    report = ReadReport()
    documents = list(read_documents([str(path)], on_error="skip", report=report))
    assert [document.line for document in documents] == [1, 3]
    assert report.skipped == {reason: 2}
    assert report.skipped_lines()[0].startswith(f"2 skipped: {reason}; first: {path}:2: ")


def test_another_text_key(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"content": "a", "text": 1}\n')
    assert [document.text for document in read_documents([str(path)], text_key="content")] == ["a"]
    write_parquet(tmp_path / "c.parquet", pyarrow.array(["a"]), name="content")
    assert [d.text for d in read_documents([str(tmp_path / "c.parquet")], text_key="content")] == ["a"]


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    write_parquet(path, pyarrow.array(["a", None, "c"]))
    with pytest.raises(DataError, match=rf"^{path}:2: 'text' is null, not text"):
        list(read_documents([str(path)]))
    write_parquet(path, pyarrow.array([1, 2]))
    with pytest.raises(DataError, match=rf"^{path}:1: 'text' is int, not text"):
        list(read_documents([str(path)]))
    write_parquet(path, pyarrow.array(["a"]), name="body")
    with pytest.raises(DataError, match=rf"^{path}:1: there is no column 'text'; the columns are: 'id', 'body'"):
        list(read_documents([str(path)]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"^{path}: the parquet data is truncated or damaged after line 0"):
        list(read_documents([str(path)]))


@pytest.mark.parametrize("form", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_compressed_files(tmp_path: Path, form: str, damage: str) -> None:
    lines = b"".join(b'{"text": "%d %s"}\n' % (i, bytes([97 + i * 7 % 26, 97 + i * 3 % 26])) for i in range(100_000))
    packed = gzip.compress(lines) if form == "gzip" else zstandard.ZstdCompressor().compress(lines)
    half = len(packed) // 2
    packed = packed[:half] if damage == "truncated" else packed[:half] + b"\0" * 50 + packed[half + 50 :]
    path = tmp_path / ("c.jsonl.gz" if form == "gzip" else "c.jsonl.zst")
    path.write_bytes(packed)
    other = tmp_path / "d.txt"
    other.write_text("whole")
    message = rf"^{path}: the {form} data is truncated or damaged after line \d+ .*copy the file again"
    if damage == "truncated" or form == "zstd":
        with pytest.raises(DataError, match=message):
            list(read_documents([str(path)]))
    else:  # what inflates wrongly may stop being JSON before its checksum is seen
        with pytest.raises(DataError, match=rf"^{path}:"):
            list(read_documents([str(path)]))
    report = ReadReport()
    documents = list(read_documents([str(path), str(other)], on_error="skip", report=report))
    assert documents[-1].text == "whole"
    assert sum(report.skipped.values()) > 0
    if damage == "truncated":
        assert report.skipped == {f"damaged {form} file": 1}
        assert len(documents) > 1000


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    for name, form in (("c.jsonl.gz", "gzip"), ("c.jsonl.zst", "zstd")):
        (tmp_path / name).write_bytes(JSONL)
        with pytest.raises(DataError, match=rf"the {form} data is truncated or damaged after line 0"):
            list(read_documents([str(tmp_path / name)]))
    (tmp_path / "c.txt").write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(DataError, match=r"c.txt:2: invalid UTF-8 at byte 8 of the file \(0xff"):
        list(read_documents([str(tmp_path / "c.txt")]))


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "c.doc").write_text("a")
    (tmp_path / "c.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    cases = {
        str(tmp_path / "none.jsonl"): r"corpus file .*none.jsonl does not exist",
        str(tmp_path / "*.parquet"): r"no file matches .*\*.parquet",
        str(tmp_path / "empty"): r"folder .*empty has no corpus file; corpus files end in .jsonl",
        str(tmp_path / "c.doc"): r"cannot tell what kind of corpus .*c.doc is; rename it",
        str(tmp_path / "c.d*"): r"cannot tell what kind of corpus .*c.doc is; rename it",
    }
    for path, message in cases.items():
        with pytest.raises(DataError, match=message):
            list(read_documents([path]))
    with pytest.raises(DataError, match=r"no input was named"):
        list(read_documents([]))
    with pytest.raises(DataError, match=r"c.txt is named twice among the inputs"):
        list(read_documents([str(tmp_path / "c.txt"), str(tmp_path)]))


def test_an_empty_corpus(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\n \n")
    with pytest.raises(DataError, match=rf"the corpus {path} has no document that can be read; check the files$"):
        list(read_documents([str(path)]))
    path.write_bytes(b"oops\n")
    with pytest.raises(DataError, match=r"no document that can be read; check the files\n1 skipped: not JSON; first"):
        list(read_documents([str(path)], on_error="skip"))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (("zstandard", "c.jsonl.zst"), ("pyarrow", "c.parquet")):
        write_format(tmp_path / name)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(DataError, match=rf"files needs the package {module}; pip install {module}"):
            list(read_documents([str(tmp_path / name)]))


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.txt"
    path.write_text("a")

    open_file = os.open

    def refuse(given: Any, *rest: Any, **more: Any) -> int:  # tests may run as root, whom permissions do not stop
        if given == str(path):
            raise PermissionError
        return open_file(given, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=r"corpus file .*c.txt may not be read by this user"):
            list(read_documents([str(path)], on_error=on_error))
