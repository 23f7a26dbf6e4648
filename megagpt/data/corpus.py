"""Which files a corpus is. In: files, globs, folders, datasets, `-` for standard input. Out: a list of CorpusFile.

Opens no file. How the documents in them are read is in `sources.py` (chunks) and `documents.py` (one by one).
"""

import glob
import os
import stat
from collections.abc import Sequence
from typing import Literal, NamedTuple

from megagpt.data.sources_datasets import SPELLING, DatasetFiles, find_dataset, is_dataset, is_saved_dataset
from megagpt.errors import DataError

OnError = Literal["raise", "skip"]
STANDARD_INPUT = "-"
FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".txt", ".parquet")


class CorpusFile(NamedTuple):
    """One input file, or a dataset as it was named, and its size as stored; standard input has none."""

    path: str
    size_bytes: int | None
    dataset: DatasetFiles | None = None  # where it is one


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
        found += [os.path.join(parent, name) for name in names if name.endswith(FORMATS) and name[0] != "."]
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
    if path.endswith(FORMATS) or (os.path.exists(path) and not os.path.isfile(path)):
        return
    if path.startswith(("/dev/", "/proc/")):
        raise DataError(f"{path} has no name that says what it is; for JSON lines on standard input write -")
    if path.endswith(".json"):
        raise DataError(
            f"cannot tell what kind of corpus {path} is: a .json file may be one value; where each line is an object, "
            f"rename it to .jsonl, and make lines of an array with: jq -c '.[]' {path} > {path}l"
        )
    raise DataError(f"cannot tell what kind of corpus {path} is; rename it so that it ends in {', '.join(FORMATS)}")
