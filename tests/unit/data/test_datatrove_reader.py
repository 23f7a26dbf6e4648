"""The datatrove step that reads corpora: all tasks together read everything once; what is wrong has its place."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megagpt.data import datatrove_reader
from megagpt.data.corpus import CorpusFile
from megagpt.data.datatrove_reader import CorpusReader
from megagpt.data.encoders_library import payload_documents
from megagpt.data.sources import Chunk, LongLine, LongText, Texts
from megagpt.errors import DataError
from tests.unit.tokenizer.toy import toy_texts


def lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\r\n" for text in texts)


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Four files; their documents are the toy texts from seed 0 to 3, in order."""
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(toy_texts(200, 0)).replace(b"\r\n", b"\n\n", 1))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(toy_texts(40, 1))))
    table = pa.table({"id": list(range(30)), "text": toy_texts(30, 2)})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=7)
    (tmp_path / "d.txt").write_bytes(toy_texts(1, 3)[0].replace("\n", "\r\n").encode())
    return [str(path) for path in sorted(tmp_path.iterdir())]


def read(inputs: list[str], rank: int = 0, num_tasks: int = 1, **options: str) -> tuple[CorpusReader, list[str]]:
    reader = CorpusReader(inputs, **options)  # type: ignore[arg-type]
    return reader, [document.text for document in reader.run(None, rank, num_tasks)]


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 40])
def test_the_shares_of_all_tasks_joined_are_the_corpus_in_order(corpus: list[str], num_tasks: int) -> None:
    expected = [text for seed, count in enumerate((200, 40, 30, 1)) for text in toy_texts(count, seed)]
    shares = [read(corpus, rank, num_tasks) for rank in range(num_tasks)]
    assert [text for _, texts in shares for text in texts] == expected
    assert sum(reader.stats["documents"].total for reader, _ in shares) == len(expected)
    if num_tasks == 5:
        assert len([texts for _, texts in shares if texts]) == 5  # a.jsonl alone is cut


def test_documents_say_where_they_are_from(corpus: list[str]) -> None:
    documents = list(CorpusReader(corpus[:1]).run())
    assert documents[0].id == f"{corpus[0]}@3"  # after the BOM
    assert documents[0].metadata == {"file_path": corpus[0]}
    content = Path(corpus[0]).read_bytes()
    for document in documents:
        position = int(document.id.rpartition("@")[2])
        assert json.loads(content[position:].split(b"\n", 1)[0])["text"] == document.text


BAD_LINES = [
    (b'{"text": 1}', "'text' is not text", "'text' is int, not text"),
    (b'{"text": "\\ud800"}', "lone surrogate", r"lone surrogate U\+D800"),
    (b'{"text"', "not JSON", "the line is not JSON"),
    (b'{"text": "\xff"}', "invalid UTF-8", "invalid UTF-8 at byte 10"),
]


@pytest.mark.parametrize(("line", "reason", "message"), BAD_LINES, ids=[reason for _, reason, _ in BAD_LINES])
def test_a_line_that_cannot_be_read_is_an_error_with_its_place_or_counted(
    tmp_path: Path, line: bytes, reason: str, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(lines(["天下"]) + line + b"\n" + lines(["大势", ""]))
    with pytest.raises(DataError, match=rf"bad.jsonl:2: .*{message}"):
        read([str(path)])
    reader, texts = read([str(path)], on_error="skip")
    assert texts == ["天下", "大势"]
    assert (reader.stats[f"dropped_{reason}"].total, reader.stats["dropped_empty text"].total) == (1, 1)


def test_a_truncated_file_is_an_error_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(lines(toy_texts(50)))[:-20])
    with pytest.raises(DataError, match=r"cut.jsonl.gz: .*gzip"):
        read([str(path)])
    reader, texts = read([str(path)], on_error="skip")
    assert texts == toy_texts(50)[: len(texts)]
    assert sum(value.total for name, value in reader.stats.stats.items() if name.startswith("dropped_")) == 1


def test_standard_input_and_missing_files_are_errors_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="standard input cannot be shared out to tasks"):
        CorpusReader(["-"])
    with pytest.raises(DataError, match=r"corpus file .*missing.jsonl does not exist"):
        CorpusReader([str(tmp_path / "missing.jsonl")])


def test_documents_of_earlier_steps_come_first(corpus: list[str]) -> None:
    first = next(CorpusReader(corpus[:1]).run())
    assert next(CorpusReader(corpus[1:]).run(iter([first]))) is first  # type: ignore[arg-type]


def test_long_lines_and_rows_with_problems_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = lines(["长" * 100])
    stored = tmp_path / "long.jsonl"
    stored.write_bytes(b"xx" + line)
    spooled = LongLine(stored, 2, 2 + len(line), temporary=True)
    monkeypatch.setattr(datatrove_reader, "chunks", lambda *_, **__: [Chunk(0, 0, len(line), 0, lambda: spooled)])
    assert [document.text for document in CorpusReader([str(stored)]).run()] == ["长" * 100]
    assert not stored.exists()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "甲\r\n乙".encode())
    whole = LongText(tmp_path / "a.txt", 0, 11)
    assert list(payload_documents(whole, "text")) == [(0, "甲\n乙")]
    bad = datatrove_reader.BadDocument("null", "is null")
    rows = Texts("甲乙".encode(), np.array([0, 3, 3, 6]), ((1, bad),))
    assert list(payload_documents(rows, "text")) == [(0, "甲"), (1, bad), (2, "乙")]


def test_a_file_that_changed_since_it_was_listed_is_an_error(corpus: list[str]) -> None:
    reader = CorpusReader(corpus[:1])
    assert reader.files == [CorpusFile(corpus[0], Path(corpus[0]).stat().st_size)]
    with open(corpus[0], "ab") as stream:
        stream.write(lines(["更多"]))
    with pytest.raises(DataError, match=r"a.jsonl has changed"):
        list(reader.run())
