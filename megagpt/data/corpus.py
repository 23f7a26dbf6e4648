"""Documents from corpus files. In: files, globs, folders, datasets, `-` for standard input. Out: a stream of Document.

One document at a time is in memory. Knows nothing of tokenizers or of what is done with the documents.
How each kind of file is read is in `corpus_formats.py`.
"""

import glob
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal, NamedTuple

from megagpt.data.corpus_formats import (
    FORMATS,
    BadDocument,
    DamagedFile,
    Entry,
    Reader,
    dataset_rows,
    json_lines,
    utf8_bytes,
)
from megagpt.data.sources_datasets import SPELLING, DatasetFiles, find_dataset, is_dataset, is_saved_dataset
from megagpt.errors import DataError

OnError = Literal["raise", "skip"]
STANDARD_INPUT = "-"


class Document(NamedTuple):
    """One document; `line` is its line (JSONL), row (parquet) or 1 (plain text), counted from 1."""

    text: str
    path: str
    line: int
    num_bytes: int  # of the text in UTF-8


class CorpusFile(NamedTuple):
    """One input file, or a dataset as it was named, and its size as stored; standard input has none."""

    path: str
    size_bytes: int | None
    dataset: DatasetFiles | None = None  # where it is one


class ReadReport:
    """What was read and what was skipped, and how far reading has come; filled by `read_documents` as it goes."""

    def __init__(self) -> None:
        self.num_documents = 0
        self.skipped: Counter[str] = Counter()  # reason -> number of documents (or damaged rests of files)
        self.first_skipped: dict[str, str] = {}  # reason -> the first message
        self._finished_bytes = 0
        self._stream: BinaryIO | None = None

    @property
    def stored_bytes_read(self) -> int:
        """Bytes of the input files read so far, as stored (compressed)."""
        return self._finished_bytes + (self._stream.tell() if self._stream is not None else 0)

    def begin_file(self, stream: BinaryIO | None) -> None:
        """Follow the position of `stream`; None where it has no position."""
        self._stream = stream

    def end_file(self, size_bytes: int) -> None:
        """The file that was begun, of this size, is read."""
        self._finished_bytes += size_bytes
        self._stream = None

    def skip(self, reason: str, message: str) -> None:
        """Count one skipped document."""
        self.skipped[reason] += 1
        self.first_skipped.setdefault(reason, message)

    def skipped_lines(self) -> list[str]:
        """What was skipped, in words: number, reason and the first place, a line a reason."""
        return [
            f"{count} skipped: {reason}; first: {self.first_skipped[reason]}" for reason, count in self.skipped.items()
        ]


def corpus_files(inputs: Sequence[str]) -> list[CorpusFile]:
    """The files that `inputs` stand for, in order: globs and folders sorted by path, folders read to any depth.

    An input is a file (.jsonl, .jsonl.gz, .jsonl.zst, .json.gz and .json.zst with JSON lines in them, .txt, .parquet),
    a glob, a folder, `-` for JSONL on standard input, or `hf:NAME[:CONFIG[:SPLIT]]` for a Hugging Face dataset: NAME
    on the Hub, a folder made by `save_to_disk`, or a folder that `datasets.load_dataset` takes; CONFIG and SPLIT may
    be left out or empty where there is only one (hf:wikimedia/wikipedia:20231101.zh, hf:./saved::train). A dataset is
    one file here, under its name, and is downloaded by this call where it has to be.

    In a folder only files with a known suffix count, and hidden ones do not; links to folders are followed, and a
    folder that several lead to is entered once. Raises DataError where an input has no file, a file has an unknown
    suffix, is no regular file or is named twice, a folder cannot be read, or a dataset cannot be had.

    Whether a file may be read is seen when it is: that is always an error. on_error="skip" is for what is in files.
    """
    if not inputs:
        raise DataError(f"no input was named; name corpus files, folders, globs, {SPELLING} or - for standard input")
    paths = [path for given in inputs for path in _expand(given)]
    seen: set[str] = set()
    for path in paths:
        if os.path.realpath(path) in seen:
            raise DataError(f"{path} is named twice among the inputs {' '.join(inputs)}; name each file once")
        seen.add(os.path.realpath(path))
    return [_listed(path) for path in paths]


def read_documents(
    inputs: Sequence[str],
    text_key: str = "text",
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Every document of `inputs` (see `corpus_files`), in order; standard input is JSONL.

    `text_key` names the text in JSONL and parquet. With `on_error="skip"` a document that cannot be read is counted in
    `report` by its reason, and reading goes on; after damage to a compressed file it goes on with the next file.

    Raises DataError, naming file and line, at the first document that cannot be read (`on_error="raise"`), and where
    the whole corpus has no document.
    """
    report = report if report is not None else ReadReport()
    for file in corpus_files(inputs):
        yield from _file_documents(file, text_key, on_error, report)
    if report.num_documents == 0:
        skipped = "".join("\n" + line for line in report.skipped_lines())
        raise DataError(f"the corpus {' '.join(inputs)} has no document that can be read; check the files{skipped}")


def _listed(path: str) -> CorpusFile:
    if is_dataset(path):
        found = find_dataset(path)
        return CorpusFile(path, found.stored_bytes, found)
    if path == STANDARD_INPUT:
        return CorpusFile(path, None)
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        if not os.path.islink(path):
            raise DataError(f"corpus file {path} is gone; it was there a moment ago: run again") from error
        raise DataError(
            f"corpus file {path} is a link to {os.readlink(path)}, which does not exist; remove the link or mend it"
        ) from error
    except OSError as error:
        raise DataError(f"corpus file {path} cannot be looked at ({error.strerror}); check its folder") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(
            f"{path} is no regular file (it is a {_kind(status.st_mode)}); for JSON lines from a pipe write - and pipe "
            "them in"
        )
    return CorpusFile(path, status.st_size)


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _file_documents(file: CorpusFile, text_key: str, on_error: OnError, report: ReadReport) -> Iterator[Document]:
    place = "standard input" if file.path == STANDARD_INPUT else file.path
    stream = None if file.path == STANDARD_INPUT or file.dataset is not None else _open(file.path)
    report.begin_file(stream)
    try:
        for line, found in _entries(file, stream, text_key):
            num_bytes = utf8_bytes(found) if isinstance(found, str) else found
            if isinstance(num_bytes, BadDocument):
                _refuse(f"{place}:{line}: {num_bytes.message}", num_bytes.reason, on_error, report)
                continue
            report.num_documents += 1
            yield Document(str(found), file.path, line, num_bytes)
    except DamagedFile as damage:
        _refuse(f"{place}: {damage.message}", damage.reason, on_error, report)
    finally:
        report.end_file(file.size_bytes or 0)
        if stream is not None:
            stream.close()


def _entries(file: CorpusFile, stream: BinaryIO | None, text_key: str) -> Iterator[Entry]:
    if file.dataset is not None:
        return dataset_rows(file.dataset, text_key)
    return json_lines(sys.stdin.buffer, text_key) if stream is None else _reader(file.path)(stream, text_key)


def _refuse(message: str, reason: str, on_error: OnError, report: ReadReport) -> None:
    if on_error == "raise":
        raise DataError(message)
    report.skip(reason, message)


def _expand(given: str) -> list[str]:
    if given == STANDARD_INPUT or is_dataset(given):
        return [given]
    if os.path.isdir(given):
        return _folder_files(given)
    if os.path.lexists(given):
        _check_name(given)
        return [given]
    if not glob.has_magic(given):
        raise DataError(f"corpus file {given} does not exist; correct the path")
    matches = sorted(path for path in glob.glob(given, recursive=True) if not os.path.isdir(path))
    if not matches:
        raise DataError(f"no file matches {given}; correct the pattern")
    for path in matches:
        _check_name(path)
    return matches


def _folder_files(folder: str) -> list[str]:
    found = []
    entered: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:  # by another link, which may be one of a loop
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, name) for name in names if name.endswith(tuple(FORMATS)) and name[0] != "."]
    if not found and is_saved_dataset(folder):
        raise DataError(f"folder {folder} was made by save_to_disk of the package datasets; write hf:{folder}")
    if not found:
        raise DataError(f"folder {folder} has no corpus file; corpus files end in {', '.join(FORMATS)}")
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    raise DataError(
        f"folder {error.filename} cannot be read ({error.strerror}); change its permissions, or name inputs without it"
    ) from error


def _check_name(path: str) -> None:
    """Raises DataError where the name does not say what kind of corpus it is; pipes and devices go through."""
    if path.endswith(tuple(FORMATS)) or (os.path.exists(path) and not os.path.isfile(path)):
        return
    if path.endswith(".json"):
        raise DataError(
            f"cannot tell what kind of corpus {path} is: a .json file may be one value; where each line is an object, "
            f"rename it to .jsonl, and make lines of an array with: jq -c '.[]' {path} > {path}l"
        )
    raise DataError(f"cannot tell what kind of corpus {path} is; rename it so that it ends in {', '.join(FORMATS)}")


def _reader(path: str) -> Reader:
    return next(reader for suffix, reader in FORMATS.items() if path.endswith(suffix))


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except PermissionError as error:
        raise DataError(f"corpus file {path} may not be read by this user; change its permissions") from error
