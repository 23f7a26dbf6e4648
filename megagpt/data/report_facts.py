"""What a report shows of one dataset, gathered once. In: a dataset, perhaps its tokenizer. Out: frozen facts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megagpt.data.check import check_dataset
from megagpt.data.dataset_stats import LengthBin, LengthCounts, TokenCounts, count_lengths, count_tokens, length_bins
from megagpt.data.indexed import IndexedDataset
from megagpt.data.parts import open_part
from megagpt.data.sidecar import Sidecar, Source
from megagpt.data.token_text import beginning, context_id, token_text
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer

NUM_SAMPLES = 6
NUM_FREQUENT = 40
_SAMPLE_TOKENS = 600
_SAMPLE_CHARACTERS = 700
_SAMPLE_IDS = 100


class FrequentToken(NamedTuple):
    """An id that occurs often; `text` is empty without a tokenizer."""

    token_id: int
    occurrences: int
    text: str


class SampleDocument(NamedTuple):
    """The beginning of a document: text with a tokenizer, else ids; `source` is None where it is not known."""

    number: int
    num_tokens: int
    source: str | None
    text: str


@dataclass(frozen=True)
class DatasetFacts:
    """All that is shown of one dataset; `vocab_size` is None where neither sidecar nor tokenizer says it."""

    name: str
    prefix: str
    dtype: str
    bin_bytes: int
    num_documents: int
    num_tokens: int
    lengths: LengthCounts
    bins: tuple[LengthBin, ...]
    token_counts: TokenCounts
    vocab_size: int | None
    frequent: tuple[FrequentToken, ...]
    samples: tuple[SampleDocument, ...]
    sidecar: Sidecar | None


def gather_facts(prefix: str, tokenizer: Tokenizer | None) -> DatasetFacts:
    """Read a dataset and, with a tokenizer, check it and decode from it. Raises DataError."""
    part = open_part(prefix)
    if part.idx is None:
        raise DataError(f"{prefix} is the share of a task without documents: there is nothing to report")
    part.idx.check()
    dataset = IndexedDataset(part.prefix)
    if tokenizer is not None:
        check_dataset(dataset, tokenizer, tokenizer.vocab_size)
    sidecar = part.sidecar
    sizes = [size.vocab_size for size in (sidecar, tokenizer) if size is not None]
    lengths = count_lengths(part.idx)
    counts = count_tokens(part.bin_path, part.idx, max(sizes, default=0))
    return DatasetFacts(
        name=Path(dataset.prefix).name,
        prefix=dataset.prefix,
        dtype=str(dataset.dtype),
        bin_bytes=part.bin_bytes,
        num_documents=len(dataset),
        num_tokens=dataset.num_tokens,
        lengths=lengths,
        bins=tuple(length_bins(lengths, per_doubling=2)),
        token_counts=counts,
        vocab_size=max(sizes, default=None),
        frequent=_frequent(counts, tokenizer),
        samples=tuple(_samples(dataset, tokenizer)),
        sidecar=sidecar,
    )


def known_sources(sidecar: Sidecar | None) -> Sequence[Source]:
    """The sources where it is known what came from each; else none."""
    if sidecar is None or sum(source.num_documents for source in sidecar.sources) != sidecar.num_documents:
        return ()
    return sidecar.sources


def _frequent(counts: TokenCounts, tokenizer: Tokenizer | None) -> tuple[FrequentToken, ...]:
    context = context_id(tokenizer) if tokenizer is not None else 0
    return tuple(
        FrequentToken(token_id, count, token_text(tokenizer, token_id, context) if tokenizer is not None else "")
        for token_id, count in counts.most_frequent(NUM_FREQUENT)
    )


def _samples(dataset: IndexedDataset, tokenizer: Tokenizer | None) -> Iterator[SampleDocument]:
    for number, source in sample_numbers(len(dataset), known_sources(dataset.sidecar)):
        every = dataset.document(number)
        if tokenizer is not None:
            content = beginning(tokenizer, every, _SAMPLE_TOKENS, _SAMPLE_CHARACTERS)
        else:
            content = " ".join(map(str, every[:_SAMPLE_IDS].tolist()))
        yield SampleDocument(number, len(every), source, content)


def sample_numbers(num_documents: int, sources: Sequence[Source]) -> list[tuple[int, str | None]]:
    """(document, its source) of up to six documents: one of each large source, the rest by their shares of the tokens.

    Within a source they are evenly spread; without known sources, over the dataset.
    """
    if not sources:
        return [(number, None) for number in _spread(0, num_documents, min(NUM_SAMPLES, num_documents))]
    chosen = [0] * len(sources)
    for _ in range(min(NUM_SAMPLES, num_documents)):
        left = [place for place, source in enumerate(sources) if chosen[place] < source.num_documents]
        new = [place for place in left if not chosen[place]]
        chosen[max(new or left, key=lambda place: sources[place].num_tokens / (chosen[place] + 1))] += 1
    numbers: list[tuple[int, str | None]] = []
    first = 0
    for source, count in zip(sources, chosen, strict=True):
        numbers += [(number, source.path) for number in _spread(first, source.num_documents, count)]
        first += source.num_documents
    return numbers


def _spread(first: int, size: int, count: int) -> list[int]:
    """The middles of `count` equal stretches of `size` numbers from `first`."""
    return [first + (2 * place + 1) * size // (2 * count) for place in range(count)]
