"""Long texts in slices that can be encoded alone, so that memory is bounded. Knows no tokenizer library."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_SLICE_CHARACTERS = 1 << 14
_REACH_CHARACTERS = 1 << 11  # how far before a slice's end a place to cut at is looked for
_BATCH_CHARACTERS = 1 << 17  # the `tokenizers` library takes some hundred bytes a token while it encodes


class _Part(NamedTuple):
    text_number: int
    part: str


def slices(text: str, cut: re.Pattern[str], num_characters: int = _SLICE_CHARACTERS) -> Iterator[str]:
    """`text` in slices of about `num_characters`, longer where there is no place to cut at.

    A place to cut at is where a match of `cut` begins; joined, the slices are the text. An empty text is one slice.
    """
    start = 0
    while len(text) - start > num_characters:
        limit = start + num_characters
        places = [match.start() for match in cut.finditer(text, max(start + 1, limit - _REACH_CHARACTERS), limit)]
        later = None if places else cut.search(text, limit)
        if later is not None:
            places = [later.start()]
        if not places:
            break
        yield text[start : places[-1]]
        start = places[-1]
    yield text[start:]


def encode_in_slices(
    texts: Sequence[str], cut: re.Pattern[str] | None, encode: Callable[[list[str]], list[list[int]]]
) -> list[list[int]]:
    """The ids of each text: those of its slices, joined. `encode` gets slices of a bounded size in all.

    Without `cut` texts stay whole, and only how many are encoded at once is bounded.
    """
    rows: list[list[int]] = [[] for _ in texts]
    for batch in _batches(texts, cut):
        for owner, ids in zip(batch, encode([item.part for item in batch]), strict=True):
            rows[owner.text_number].extend(ids)
    return rows


def _batches(texts: Sequence[str], cut: re.Pattern[str] | None) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    size = 0
    for number, text in enumerate(texts):
        for part in slices(text, cut) if cut else [text]:
            batch.append(_Part(number, part))
            size += len(part)
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
