"""What is in a dataset, in words and bars. In: a prefix, perhaps its tokenizer. Out: lines of text.

Everything but the decoded text and the check against a tokenizer is read by blocks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from megagpt.data.check import check_dataset, share_of_ended_documents
from megagpt.data.dataset_stats import LengthCounts, TokenCounts, count_lengths, count_tokens, length_bins
from megagpt.data.indexed import IndexedDataset
from megagpt.data.parts import Part, open_part
from megagpt.data.sidecar import Sidecar, Source
from megagpt.data.token_text import beginning, context_id, token_text, visible
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer

_SHOWN_TOKENS = 200
_SHOWN_CHARACTERS = 400
_SHOWN_SOURCES = 20
_BAR = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Shown(NamedTuple):
    """How much to show: one `document` by its number, or else `num_samples` evenly spread; and the frequent ids."""

    document: int | None = None
    num_samples: int = 3
    num_frequent: int = 20


def inspect_dataset(prefix: str, tokenizer: Tokenizer | None, shown: Shown) -> list[str]:
    """Counts, tokenizer, sources, document lengths, frequent ids, and the beginning of some documents.

    Documents are text with a tokenizer, ids without; with one the dataset is also checked against it
    (`check_dataset`). Raises DataError.
    """
    part = open_part(prefix)
    if part.idx is None:
        return [f"dataset        {prefix}: a task's share without documents"]
    part.idx.check()
    dataset = IndexedDataset(part.prefix)
    documents = _documents_to_show(dataset, shown)
    lengths = count_lengths(part.idx)
    lines = [*_head_lines(dataset, lengths), *_sidecar_lines(dataset)]
    if tokenizer is not None:
        check_dataset(dataset, tokenizer, tokenizer.vocab_size)
        lines.append(f"belongs to     {tokenizer.path}: yes")
    if dataset.sidecar is not None:
        lines += ["", *_source_lines(dataset.sidecar)]
    lines += ["", "documents by length (tokens, with the end-of-document id)", *_length_lines(lengths)]
    if shown.num_frequent:
        lines += ["", *_token_lines(part, tokenizer, shown.num_frequent)]
    for document in documents:
        every = dataset.document(document)
        if tokenizer is not None:
            text = beginning(tokenizer, every, _SHOWN_TOKENS, _SHOWN_CHARACTERS)
        else:
            text = " ".join(map(str, every[:_SHOWN_TOKENS].tolist()))
        count = f"first {min(len(every), _SHOWN_TOKENS)} of {len(every):,} tokens"
        lines += ["", f"document {document}, {count}:", text]
    return lines


def bar(share: float, width: int = _BAR) -> str:
    """A bar of `width` characters at share 1, exact to an eighth; what is above 0 always shows."""
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(eighths, 1)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _documents_to_show(dataset: IndexedDataset, shown: Shown) -> list[int]:
    if shown.document is None:
        places = np.linspace(0, len(dataset) - 1, min(shown.num_samples, len(dataset)))
        return np.unique(places.astype(np.int64)).tolist()
    if not 0 <= shown.document < len(dataset):
        raise DataError(
            f"document {shown.document} does not exist in {dataset.prefix}: it has documents 0 to {len(dataset) - 1}"
        )
    return [shown.document]


def _head_lines(dataset: IndexedDataset, lengths: LengthCounts) -> list[str]:
    quartiles = ", ".join(f"{lengths.quantile(share):,}" for share in (0, 0.25, 0.5, 0.75, 1))
    megabytes = dataset.num_tokens * dataset.dtype.itemsize / 1e6
    return [
        f"dataset        {dataset.prefix} ({megabytes:.2f} MB of {dataset.dtype})",
        f"documents      {len(dataset):,} in {len(dataset.sequence_lengths):,} sequences",
        f"tokens         {dataset.num_tokens:,}; largest id {dataset.max_token_id()}",
        f"document size  {quartiles} tokens (least, quartiles, most); {lengths.mean():.1f} on average",
    ]


def _sidecar_lines(dataset: IndexedDataset) -> list[str]:
    sidecar: Sidecar | None = dataset.sidecar
    if sidecar is None:
        return ["tokenizer      unknown: there is no .json beside the dataset (Megatron writes none)"]
    ended = share_of_ended_documents(dataset, sidecar.eod_id)
    size = f"{sidecar.text_bytes / 1e6:.2f} MB in UTF-8" if sidecar.text_bytes else "size not known"
    lines = [
        f"tokenizer      {sidecar.tokenizer_kind}, {sidecar.vocab_size} ids, fingerprint {sidecar.fingerprint}",
        f"document ends  id {sidecar.eod_id}, at the end of {ended:.1%} of the documents looked at",
        f"text           {size}{_compression_words(sidecar)}",
    ]
    return lines + [f"left out       {count:,}: {reason}" for reason, count in sidecar.skipped.items()]


def _compression_words(counts: Sidecar | Source) -> str:
    per_token = max(counts.num_tokens - counts.num_documents, 1)
    words = ""
    if counts.num_characters:
        words += f", {counts.num_characters / per_token:.3f} characters/token"
    if counts.text_bytes and counts.num_tokens:
        words += f", {counts.text_bytes / per_token:.3f} bytes/token"
    return words


def _source_lines(sidecar: Sidecar) -> list[str]:
    """A table of the sources, those with the most tokens where there are many."""
    sources: Sequence[Source] = sidecar.sources
    lines = ["   documents          tokens   share   chars/token   bytes/token   source"]
    if sum(source.num_documents for source in sources) != sidecar.num_documents:
        lines = ["made from (what came from each is not known: an older format)"]
        return (
            lines
            + [f"  {visible(source.path)}{_size_words(source)}" for source in sources[:_SHOWN_SOURCES]]
            + _more(sources)
        )
    largest = sorted(sources, key=lambda source: -source.num_tokens)[:_SHOWN_SOURCES]
    for source in sources:
        if source not in largest:
            continue
        per_token = max(source.num_tokens - source.num_documents, 1)
        characters = f"{source.num_characters / per_token:.3f}" if source.num_characters else "–"
        in_bytes = f"{source.text_bytes / per_token:.3f}" if source.text_bytes else "–"
        lines.append(
            f"{source.num_documents:12,} {source.num_tokens:15,} {source.num_tokens / sidecar.num_tokens:7.1%} "
            f"{characters:>13} {in_bytes:>13}   {visible(source.path)}{_size_words(source)}"
        )
    return lines + _more(sources)


def _size_words(source: Source) -> str:
    return " (size unknown)" if source.size_bytes is None else f" ({source.size_bytes / 1e6:.2f} MB)"


def _more(sources: Sequence[Source]) -> list[str]:
    hidden = len(sources) - _SHOWN_SOURCES
    return [f"  and {hidden} more files"] if hidden > 0 else []


def _length_lines(lengths: LengthCounts) -> list[str]:
    bins = length_bins(lengths)
    while len(bins) > 1 and not bins[0].num_documents:
        bins = bins[1:]
    most, total = max(row.num_documents for row in bins), int(lengths.counts.sum())
    return [
        f"{row.first:>11,} – {row.last:<11,} {row.num_documents:>13,} {row.num_documents / total:7.2%}  "
        f"{bar(row.num_documents / most)}".rstrip()
        for row in bins
    ]


def _token_lines(part: Part, tokenizer: Tokenizer | None, num_frequent: int) -> list[str]:
    assert part.idx is not None, part
    sizes = (part.sidecar.vocab_size if part.sidecar is not None else 0, tokenizer.vocab_size if tokenizer else 0)
    counts = count_tokens(part.bin_path, part.idx, max(sizes))
    frequent = counts.most_frequent(num_frequent)
    context = context_id(tokenizer) if tokenizer is not None else 0
    lines = [f"most frequent ids{_counted_words(counts)}"]
    for token_id, count in frequent:
        text = token_text(tokenizer, token_id, context) if tokenizer is not None else ""
        share = count / counts.num_counted
        lines.append(f"{token_id:>9} {count:>14,} {share:7.2%}  {bar(count / frequent[0][1], 24):24}  {text}".rstrip())
    lines.append(
        f"half of all tokens are {counts.covering(0.5):,} different ids, 90 % are {counts.covering(0.9):,}, 99 % are "
        f"{counts.covering(0.99):,}"
    )
    if max(sizes):
        never = counts.never_used()
        lines.append(f"never used     {never:,} of {len(counts.counts):,} ids ({never / len(counts.counts):.1%})")
    return lines


def _counted_words(counts: TokenCounts) -> str:
    if counts.num_counted == counts.num_tokens:
        return ""
    return f" (of {counts.num_counted:,} tokens, evenly spread over the {counts.num_tokens:,})"
