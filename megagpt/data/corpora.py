"""The corpora of a run, opened and checked. In: the data section, the tokenizer. Out: datasets with names and samples.

A single `data.path` is a list of one. Knows nothing of phases, ranks or batches.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import xxhash

from megagpt.config import DataSection
from megagpt.data.blend_history import CorpusShare
from megagpt.data.check import check_dataset
from megagpt.data.index_files import IndexStore
from megagpt.data.index_order import ORDER_VERSION
from megagpt.data.indexed import IndexedDataset
from megagpt.data.samples import SampleIndex
from megagpt.data.splits import SPLITS, Split
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer


class CorpusEntry(NamedTuple):
    """A corpus as the configuration names it, with its defaults filled in."""

    name: str
    path: str
    weight: float
    split: tuple[float, float, float]


def corpus_entries(data: DataSection) -> tuple[CorpusEntry, ...]:
    """The corpora of a run, in their order; none where the configuration names none."""
    if data.corpora is not None:
        return tuple(
            CorpusEntry(
                corpus.name if corpus.name is not None else _name_of(corpus.path),
                corpus.path,
                corpus.weight,
                corpus.split if corpus.split is not None else data.split,
            )
            for corpus in data.corpora
        )
    return () if data.path is None else (CorpusEntry(_name_of(data.path), data.path, 1.0, data.split),)


class Corpus(NamedTuple):
    """A corpus that belongs to the run."""

    entry: CorpusEntry
    dataset: IndexedDataset
    fingerprint: str  # of what decides the order of its samples, but for the seed
    store: IndexStore

    @property
    def share(self) -> CorpusShare:
        """As a phase names it."""
        return CorpusShare(self.entry.name, self.fingerprint, self.entry.weight)

    def has(self, split: Split) -> bool:
        """Whether any of its documents are in `split`."""
        return self.entry.split[SPLITS.index(split)] > 0

    def samples(self, split: Split, sequence_length: int, seed: int) -> SampleIndex:
        """The samples of one split. Raises DataError where there are none."""
        return SampleIndex(self.dataset, split, self.entry.split, sequence_length, seed, self.store)


def open_corpora(
    entries: tuple[CorpusEntry, ...],
    tokenizer: Tokenizer,
    vocab_size: int,
    index_folder: str | None,
    keep_small: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Corpus, ...]:
    """Open every dataset and check it against the tokenizer and the model's vocabulary.

    `index_folder`, `keep_small` and `say` are IndexStore's. Raises DataError, also where two are the same.
    """
    corpora: list[Corpus] = []
    for entry in entries:
        dataset = IndexedDataset(entry.path)
        check_dataset(dataset, tokenizer, vocab_size)
        content = dataset.content_hash()
        fingerprint = xxhash.xxh3_128_hexdigest(f"{ORDER_VERSION} {content} {entry.split}".encode())
        for other in corpora:
            if other.fingerprint == fingerprint:
                raise DataError(
                    f"the corpora {other.entry.name} ({other.entry.path}) and {entry.name} ({entry.path}) of "
                    "data.corpora have the same documents; name it once, with the sum of the weights"
                )
        store = IndexStore(dataset.prefix, content, index_folder, keep_small, say)
        corpora.append(Corpus(entry, dataset, fingerprint, store))
    return tuple(corpora)


def _name_of(path: str) -> str:
    return Path(path).name.removesuffix(".bin").removesuffix(".idx")
