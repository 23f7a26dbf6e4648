"""Hugging Face datasets as a corpus. In: hf:NAME[:CONFIG[:SPLIT]]. Out: the rows of one split, a few at a time.

NAME is one of the Hub, or a local path: a folder made by `save_to_disk`, or whatever `datasets.load_dataset` takes.
The package datasets is needed only where such a name is given.
"""

import os
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

from megagpt.errors import DataError

PREFIX = "hf:"
SPELLING = "hf:NAME[:CONFIG[:SPLIT]]"
_STEP_ROWS = 4096  # steps end at multiples of this
_MAPPED_BYTES = 64 << 20
_SAVED_MARKS = ("state.json", "dataset_dict.json")  # what save_to_disk writes into its folder


class DatasetName(NamedTuple):
    """Which dataset is meant; an empty `config` or `split` is the only one."""

    name: str
    config: str
    split: str


class Rows:
    """One split of a dataset. Attributes: `columns`, their names; `num_rows`; `stored_bytes`, of its Arrow files."""

    def __init__(self, given: str, dataset: Any) -> None:
        self._given = given
        self._dataset = dataset
        self.columns: list[str] = dataset.column_names
        self.num_rows: int = dataset.num_rows
        files = {entry["filename"] for entry in dataset.cache_files}
        self.stored_bytes: int = sum(map(os.path.getsize, files)) or int(dataset.data.nbytes)

    def steps(self, column: str, start: int = 0) -> Iterator[tuple[int, Any]]:
        """(row, pyarrow.ChunkedArray of the column from this row on), from row `start`; no copy of what is on disk.

        Pages of the dataset's files that were read belong to this process only for a while.
        """
        chosen = self._dataset.select_columns([column]).with_format("arrow")
        bytes_per_row = self.stored_bytes / max(self.num_rows, 1)
        mapped = 0.0
        while start < self.num_rows:
            stop = min((start // _STEP_ROWS + 1) * _STEP_ROWS, self.num_rows)
            yield start, chosen[start:stop].column(0)
            mapped += (stop - start) * bytes_per_row
            if mapped > _MAPPED_BYTES:
                chosen, mapped = pickle.loads(pickle.dumps(chosen)), 0.0  # maps the files anew
            start = stop


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


def load_rows(given: str) -> Rows:
    """The split that `given` names; one of the Hub is downloaded into the cache of datasets if it is not there yet.

    Raises DataError where the package is missing, the dataset cannot be had, or it does not say which split is meant.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"reading {given} needs the package datasets; pip install datasets") from error
    name, config, split = parse_dataset_name(given)
    try:
        if is_saved_dataset(name):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # of many libraries, without a common base
        reason = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"the dataset {given} cannot be loaded ({type(error).__name__}: {reason}); check the name, and that the "
            "Hub can be reached or, with HF_HUB_OFFLINE=1, that it is in the cache"
        ) from error
    return Rows(given, _one_split(given, loaded, split))


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
