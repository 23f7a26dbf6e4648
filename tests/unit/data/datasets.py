"""Small indexed datasets for tests."""

from pathlib import Path

import numpy as np

from megagpt.data.indexed import IndexedDataset
from megagpt.data.indexed_writer import IndexedWriter

EOD = 1


def numbered_dataset(prefix: Path, lengths: list[int]) -> IndexedDataset:
    """Documents of `lengths` tokens; every token but the last (EOD) is a number of its own."""
    ids = np.arange(2, 2 + sum(lengths))
    ids[np.cumsum(lengths) - 1] = EOD
    with IndexedWriter(prefix, np.dtype(np.int32), overwrite=True) as writer:
        writer.add_documents(ids, lengths)
        writer.finish()
    return IndexedDataset(prefix)
