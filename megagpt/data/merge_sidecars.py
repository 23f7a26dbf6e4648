"""The sidecar of joined datasets. In: their sidecars. Out: one, its sources and shards numbered anew. Pure.

Documents keep their order, and the sources stay in the order of their documents: those of source k follow those of
source k - 1. So a file that was cut over several tasks is one source again.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from megagpt.data.sidecar import FORMAT_VERSION, Sidecar, Source


class MergedSidecar(NamedTuple):
    """`sidecar` is None where a part has none; `notes` say what the result lacks, and because of which parts."""

    sidecar: Sidecar | None
    notes: tuple[str, ...]


def merge_sidecars(prefixes: Sequence[str], sidecars: Sequence[Sidecar | None], one_build: bool) -> MergedSidecar:
    """Join the sidecars of the datasets `prefixes`, in this order; with `one_build` they are its tasks.

    Counts are summed; a count that a part does not know (0 although it has text) is not known of the whole, hence 0.
    """
    known = [sidecar for sidecar in sidecars if sidecar is not None]
    if len(known) < len(sidecars):
        without = [prefix for prefix, sidecar in zip(prefixes, sidecars, strict=True) if sidecar is None]
        return MergedSidecar(None, (f"no .json: {_some(without)} has none, so the whole's tokenizer is not known",))
    first, notes = known[0], []
    sources, numbers = _merge_sources([sidecar.sources for sidecar in known], one_build)
    shards = [
        replace(shard, first_source=number[shard.first_source], last_source=number[shard.last_source])
        for sidecar, number in zip(known, numbers, strict=True)
        for shard in sidecar.shards
    ]
    unhashed = [prefix for prefix, sidecar in zip(prefixes, known, strict=True) if not _has_hashes(sidecar)]
    if unhashed:
        shards = []
        notes.append(f"no hashes: {_some(unhashed)} has none (an older format), so the whole cannot be verified")
    skipped: dict[str, int] = {}
    for sidecar in known:
        for reason, count in sidecar.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + count
    merged = Sidecar(
        tokenizer_kind=first.tokenizer_kind,
        fingerprint=first.fingerprint,
        vocab_size=first.vocab_size,
        eod_id=first.eod_id,
        max_token_id=max(sidecar.max_token_id for sidecar in known),
        num_documents=sum(sidecar.num_documents for sidecar in known),
        num_tokens=sum(sidecar.num_tokens for sidecar in known),
        text_bytes=_sum_known([(sidecar.text_bytes, sidecar.num_tokens) for sidecar in known]),
        num_characters=_sum_known([(sidecar.num_characters, sidecar.num_tokens) for sidecar in known]),
        sources=tuple(sources),
        skipped=skipped,
        shards=tuple(shards),
        format_version=FORMAT_VERSION,
    )
    return MergedSidecar(merged, tuple(notes))


def shards_cover(sidecar: Sidecar) -> bool:
    """Whether the shards hold every document and token of the dataset, so that their hashes verify all of it."""
    documents = sum(shard.num_documents for shard in sidecar.shards)
    tokens = sum(shard.num_tokens for shard in sidecar.shards)
    return (documents, tokens) == (sidecar.num_documents, sidecar.num_tokens)


def _has_hashes(sidecar: Sidecar) -> bool:
    return sidecar.num_documents == 0 or shards_cover(sidecar)


def _merge_sources(lists: Sequence[tuple[Source, ...]], one_build: bool) -> tuple[list[Source], list[dict[int, int]]]:
    """All sources, and for each part the new number of each of its own."""
    merged: list[Source] = []
    numbers: list[dict[int, int]] = []
    places: dict[tuple[str, int | None], int] = {}  # the last source of a path and size
    last_filled = 0  # no document comes from a source after this one yet
    for sources in lists:
        number: dict[int, int] = {}
        earliest = 0  # sources of a part keep their order
        for index, source in enumerate(sources):
            same = places.get((source.path, source.size_bytes))
            joins = same is not None and same >= (max(earliest, last_filled) if source.num_documents else earliest)
            if same is not None and joins and (one_build or source.size_bytes is not None):
                merged[same] = _add(merged[same], source)
            else:
                same = len(merged)
                merged.append(source)
                places[source.path, source.size_bytes] = same
            number[index] = same
            earliest = same + 1
            if source.num_documents:
                last_filled = same
        numbers.append(number)
    return merged, numbers


def _add(left: Source, right: Source) -> Source:
    return Source(
        path=left.path,
        size_bytes=left.size_bytes,
        num_documents=left.num_documents + right.num_documents,
        num_tokens=left.num_tokens + right.num_tokens,
        text_bytes=_sum_known([(left.text_bytes, left.num_tokens), (right.text_bytes, right.num_tokens)]),
        num_characters=_sum_known([(left.num_characters, left.num_tokens), (right.num_characters, right.num_tokens)]),
    )


def _sum_known(counts_and_tokens: Sequence[tuple[int, int]]) -> int:
    """The sum; 0, "not known", where a count is 0 although there are tokens."""
    if any(count == 0 and num_tokens > 0 for count, num_tokens in counts_and_tokens):
        return 0
    return sum(count for count, _ in counts_and_tokens)


def _some(prefixes: Sequence[str]) -> str:
    return prefixes[0] if len(prefixes) == 1 else f"{prefixes[0]} (and {len(prefixes) - 1} more)"
