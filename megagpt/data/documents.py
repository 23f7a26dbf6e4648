"""The documents of a corpus, one by one. In: inputs. Out: a stream of Document, long ones in parts.

Reads the chunks that a build reads, with the same messages; memory is bounded whatever the files. Knows nothing of
tokenizers or of what is done with the documents.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from megagpt.data.corpus import STANDARD_INPUT, CorpusFile, OnError, corpus_files
from megagpt.data.corpus_formats import BadDocument, invalid_utf8, json_text, utf8_bytes
from megagpt.data.documents_long import Found, long_line, long_text
from megagpt.data.sources import SIZES, DamagedFile, JsonLines, LongLine, LongText, Payload, Sizes, Texts, chunks
from megagpt.errors import DataError


class Document(NamedTuple):
    """One document, or one part of a long one: its text is that of the Documents up to the next with `is_end`."""

    text: str
    path: str
    line: int  # line (JSONL), row (parquet, dataset) or 1 (plain text), counted from 1
    num_bytes: int  # of the text in UTF-8
    is_end: bool = True


class ReadReport:
    """What was read and what was skipped; filled by `read_documents` as it goes."""

    def __init__(self) -> None:
        self.num_documents = 0
        self.skipped: Counter[str] = Counter()  # reason -> number of documents (or damaged rests of files)
        self.first_skipped: dict[str, str] = {}  # reason -> the first message

    def skip(self, reason: str, message: str) -> None:
        """Count one skipped document."""
        self.skipped[reason] += 1
        self.first_skipped.setdefault(reason, message)

    def skipped_lines(self) -> list[str]:
        """What was skipped, in words: number, reason and the first place, a line a reason."""
        return [
            f"{count} skipped: {reason}; first: {self.first_skipped[reason]}" for reason, count in self.skipped.items()
        ]


def read_documents(
    inputs: Sequence[str],
    text_key: str = "text",
    on_error: OnError = "raise",
    report: ReadReport | None = None,
    sizes: Sizes = SIZES,
) -> Iterator[Document]:
    """Every document of `inputs` (see `corpus_files`), in order; standard input is JSONL.

    `text_key` names the text in JSONL and parquet. Text files over `sizes.chunk_bytes` and lines over
    `sizes.long_line_bytes` come in parts of at most 256 KiB, after all of it was found to be good. With
    `on_error="skip"` a document that cannot be read is counted in `report` by its reason, and reading goes on; after
    damage to a compressed file it goes on with the next file.

    Raises DataError, naming file and line, at the first document that cannot be read (`on_error="raise"`), and where
    a file may not be read or the whole corpus has no document.
    """
    report = report if report is not None else ReadReport()
    with tempfile.TemporaryDirectory(prefix="megagpt-") as spool:
        for file in corpus_files(inputs):
            yield from _file_documents(file, text_key, on_error, report, Path(spool), sizes)
    if report.num_documents == 0:
        skipped = "".join("\n" + line for line in report.skipped_lines())
        raise DataError(f"the corpus {' '.join(inputs)} has no document that can be read; check the files{skipped}")


def _file_documents(
    file: CorpusFile, text_key: str, on_error: OnError, report: ReadReport, spool: Path, sizes: Sizes
) -> Iterator[Document]:
    place = "standard input" if file.path == STANDARD_INPUT else file.path
    line = 1
    try:
        for chunk in chunks(file, 0, text_key, spool=spool, sizes=sizes):
            payload = chunk.load()
            for before, found, is_end in _documents(payload, text_key):
                size = utf8_bytes(found) if isinstance(found, str) else found
                if isinstance(size, BadDocument):
                    _refuse(f"{place}:{line + before}: {size.message}", size.reason, on_error, report)
                    continue
                report.num_documents += is_end
                yield Document(str(found), file.path, line + before, size, is_end)
            line += _num_lines(payload)
    except DamagedFile as damage:
        _refuse(f"{place}: {damage.message}", damage.reason, on_error, report)


def _refuse(message: str, reason: str, on_error: OnError, report: ReadReport) -> None:
    if on_error == "raise":
        raise DataError(message)
    report.skip(reason, message)


def _num_lines(payload: Payload) -> int:
    """Lines that end in the payload, or its rows."""
    match payload:
        case JsonLines(content):
            return content.count(b"\n")
        case Texts():
            return len(payload.offsets) - 1
    return 1


def _documents(payload: Payload, text_key: str) -> Iterator[Found]:
    match payload:
        case JsonLines(content):
            for before, raw in enumerate(content.split(b"\n")):
                if raw.strip():
                    yield before, json_text(raw, text_key), True
        case Texts():
            yield from _rows(payload)
        case LongLine():
            yield from long_line(payload, text_key)
        case LongText():
            yield from long_text(payload)


def _rows(payload: Texts) -> Iterator[Found]:
    bad = dict(payload.bad)
    view = memoryview(payload.data)
    for row, (start, stop) in enumerate(pairwise(payload.offsets.tolist())):
        if row in bad:
            yield row, bad[row], True
            continue
        try:
            yield row, bytes(view[start:stop]).decode("utf-8"), True
        except UnicodeDecodeError as error:
            yield row, invalid_utf8(error, "text"), True
