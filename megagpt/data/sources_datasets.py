"""Hugging Face datasets as a corpus. In: hf:NAME[:CONFIG[:SPLIT]]. Out: the Arrow files of one split, their columns.

NAME is one of the Hub, or a local path: a folder made by `save_to_disk`, or whatever `datasets.load_dataset` takes.
The package datasets is needed only where such a name is given, and runs in a process of its own: importing it takes
more memory than a whole build does. Its Arrow files are then read without it.
"""

import json
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from megagpt.errors import DataError

PREFIX = "hf:"
SPELLING = "hf:NAME[:CONFIG[:SPLIT]]"
_SAVED_MARKS = ("state.json", "dataset_dict.json")  # what save_to_disk writes into its folder
_MAPPED_BYTES = 32 << 20
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from megagpt.data.sources_datasets import answer; answer(sys.argv[2])"
)


class DatasetName(NamedTuple):
    """Which dataset is meant; an empty `config` or `split` is the only one."""

    name: str
    config: str
    split: str


class DatasetFiles(NamedTuple):
    """One split of a dataset: the names of its columns, and its Arrow files in order, each with its number of rows."""

    columns: tuple[str, ...]
    files: tuple[tuple[str, int], ...]

    @property
    def num_rows(self) -> int:
        """Of all files."""
        return sum(rows for _, rows in self.files)

    @property
    def stored_bytes(self) -> int:
        """Of all files."""
        return sum(os.path.getsize(path) for path, _ in self.files)


def is_dataset(given: str) -> bool:
    """Whether an input is spelled as a dataset."""
    return given.startswith(PREFIX)


def is_saved_dataset(folder: str) -> bool:
    """Whether a folder was made by `save_to_disk`."""
    return any(os.path.exists(os.path.join(folder, mark)) for mark in _SAVED_MARKS)


def parse_dataset_name(given: str) -> DatasetName:
    """Raises DataError where `given` is not spelled as it must be."""
    name, config, split, *more = [*given.removeprefix(PREFIX).split(":"), "", ""]
    if not name or any(more):
        raise DataError(
            f"{given} does not name a dataset; write {SPELLING}, such as hf:wikimedia/wikipedia:20231101.zh"
        )
    return DatasetName(name, config, split)


def find_dataset(given: str) -> DatasetFiles:
    """`load_dataset` in a process of its own, which takes about two seconds; what it downloads shows on stderr.

    Raises DataError as that does, and where the process ends before it has the dataset.
    """
    import subprocess  # not at the top: every start of the command line would pay for it

    parse_dataset_name(given)
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(sys.path), given], stdout=subprocess.PIPE, encoding="utf-8"
    )
    said = child.stdout.split("\n")
    last = next((line for line in reversed(said) if line), "")
    try:
        found = json.loads(last) if child.returncode == 0 else None
    except ValueError:
        found = None
    if isinstance(found, str):
        raise DataError(found)
    if found is None:
        saying = f" after saying {last!r}" if last else ""
        raise DataError(
            f"the process that loads {given} {_ending(child.returncode)}{saying}; what it wrote on standard error "
            "stands above: mend that, and run again"
        )
    columns, files = found
    return DatasetFiles(tuple(columns), tuple((path, rows) for path, rows in files))


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    return f"was killed ({name}){'; where memory ran out, free some' if name == 'SIGKILL' else ''}"


def answer(given: str) -> None:
    """What the process of `find_dataset` does: its last line on standard output is the dataset, or the error's text."""
    try:
        found: DatasetFiles | str = load_dataset(given)
    except DataError as error:
        found = str(error)
    print("\n" + json.dumps(found))


def load_dataset(given: str) -> DatasetFiles:
    """The split that `given` names; one of the Hub is downloaded into the cache of datasets if it is not there yet.

    Raises DataError where the package is missing, the dataset cannot be had, or it does not say which split is meant.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"reading {given} needs the package datasets; pip install datasets") from error
    except Exception as error:  # of its own dependencies, such as another numpy than it was built for
        raise DataError(
            f"reading {given} needs the package datasets, which fails ({_in_short(error)}); install it again"
        ) from error
    name, config, split = parse_dataset_name(given)
    try:
        if is_saved_dataset(name):
            loaded = datasets.load_from_disk(name, keep_in_memory=False)
        else:
            loaded = datasets.load_dataset(name, config or None, keep_in_memory=False)
    except Exception as error:  # of many libraries, without a common base
        raise DataError(
            f"the dataset {given} cannot be loaded ({_in_short(error)}); check the name, and that the "
            "Hub can be reached or, with HF_HUB_OFFLINE=1, that it is in the cache"
        ) from error
    chosen = _one_split(given, loaded, split)
    paths = [entry["filename"] for entry in chosen.cache_files]
    files = tuple((path, _num_rows(path)) for path in paths if os.path.getsize(path))
    found = DatasetFiles(tuple(chosen.column_names), files)
    if chosen._indices is not None or found.num_rows != chosen.num_rows:
        raise DataError(
            f"{given} is a selection of another dataset's rows; save it with flatten_indices().save_to_disk(FOLDER)"
        )
    return found


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def column_arrays(found: DatasetFiles, column: str, start: int = 0) -> Iterator[tuple[int, Iterator[Any]]]:
    """For each file: the row it starts at, or `start` in it, and the column's pyarrow.Arrays from there on.

    They are the file's bytes, not copied; the pages that were read belong to this process only for a while.
    """
    first = 0
    for path, rows in found.files:
        following = first + rows
        if following > start:
            yield max(first, start), _arrays(path, column, max(start - first, 0))
        first = following


def _arrays(path: str, column: str, start: int) -> Iterator[Any]:
    import pyarrow

    used = 0
    try:
        with open(path, "rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        for batch in pyarrow.ipc.open_stream(pyarrow.py_buffer(mapped)):
            array = batch.column(batch.schema.get_field_index(column))
            if start < len(array):
                yield array[start:]
                used += array.nbytes
            start = max(start - len(array), 0)
            if used > _MAPPED_BYTES:
                mapped.madvise(mmap.MADV_DONTNEED)  # a page still in use is mapped again when it is looked at
                used = 0
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"the file {path} of the dataset cannot be read ({error}); load the dataset again") from error


def _num_rows(path: str) -> int:
    import pyarrow

    with pyarrow.memory_map(path) as stream:
        return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(stream))


def _one_split(given: str, loaded: Any, split: str) -> Any:
    name, config, _ = parse_dataset_name(given)
    if not isinstance(loaded, dict):
        if split:
            raise DataError(f"{given}: this dataset was saved without splits; write {PREFIX}{name}")
        return loaded
    if split in loaded:
        return loaded[split]
    if not split and len(loaded) == 1:
        return next(iter(loaded.values()))
    spelled = ", ".join(f"{PREFIX}{name}:{config}:{there}" for there in loaded)
    raise DataError(f"{given} has {'no split ' + split if split else 'several splits'}; name one of {spelled}")
