"""The part of a build that reads. In: corpus files. Out: work for the encoding threads, and what they make of it.

`work` gives the chunks of a build's shares in order; `Encoding` turns one into a Piece. Knows nothing of files written.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from megagpt.data.corpus import STANDARD_INPUT, CorpusFile, OnError
from megagpt.data.corpus_formats import BadDocument, json_text
from megagpt.data.encoded import EMPTY_TEXT, Encoded, Encoder
from megagpt.data.encoders_library import payload_documents
from megagpt.data.indexed_writer import MAX_DOCUMENT_TOKENS, too_long
from megagpt.data.shard_writer import Piece
from megagpt.data.sources import (
    Chunk,
    DamagedFile,
    FileRange,
    JsonLines,
    LongLine,
    LongText,
    Payload,
    Sizes,
    Texts,
    chunks,
    place_of,
)
from megagpt.data.sources_datasets import is_dataset
from megagpt.data.sources_long import LongContent
from megagpt.data.sources_types import BOM
from megagpt.errors import DataError

_SAMPLE_PLACES = 5
_SAMPLE_TEXTS = 24  # of each place
_SAMPLE_CHARACTERS = 1000  # of each text
_SAMPLE_LINES_BYTES = 1 << 16


class Reading(NamedTuple):
    """What to read and how; `shares` refer to `files`, and a build's source number is an index of `shares`."""

    files: Sequence[CorpusFile]
    shares: Sequence[FileRange]
    text_key: str
    on_error: OnError
    spool: Path
    sizes: Sizes

    def file(self, source: int) -> CorpusFile:
        """The file of a source."""
        return self.files[self.shares[source].file]

    def is_plain(self, source: int) -> bool:
        """Whether positions of a source are bytes of the stored file."""
        path = self.file(source).path
        return path.endswith(".jsonl") and not is_dataset(path)

    def stored_bytes(self) -> int | None:
        """Stored bytes of all that is to be read; None where that is not known."""
        total = 0
        for source, share in enumerate(self.shares):
            size = self.file(source).size_bytes
            if size is None:
                return None
            total += (size if share.stop is None else share.stop) - share.start if self.is_plain(source) else size
        return total

    def chunks(self, source: int, start: int, stop: int | None) -> Iterator[Chunk]:
        """The chunks of a source from `start` to `stop`."""
        share = self.shares[source]
        file = self.files[share.file]
        return chunks(file, share.file, self.text_key, start, stop, spool=self.spool, sizes=self.sizes)


class Work(NamedTuple):
    """A chunk to encode; or, `chunk` None, the place from where a source cannot be read."""

    source: int
    chunk: Chunk | None
    stored_bytes_read: int  # of the whole input, when this is done
    damaged_at: int = 0
    damage: DamagedFile | None = None


def work(
    reading: Reading, source: int, position: int, stored_bytes_read: int, begun: Iterator[Chunk] | None = None
) -> Iterator[Work]:
    """All that is to be encoded from `position` of `source` on, in order.

    `begun`: the chunks of that first source, where they cannot be had a second time. Raises DataError.
    """
    read = stored_bytes_read
    for number in range(source, len(reading.shares)):
        share = reading.shares[number]
        here = max(position, share.start) if number == source else share.start
        stored: int | None = here if reading.is_plain(number) or here == 0 else None
        try:
            for chunk in begun or reading.chunks(number, here, share.stop):
                read += chunk.stored_bytes - (chunk.stored_bytes if stored is None else stored)
                here, stored = chunk.stop, chunk.stored_bytes
                yield Work(number, chunk, read)
        except DamagedFile as damage:
            yield Work(number, None, read, here, damage)
        begun = None


class Encoding:
    """Encodes chunks in one thread."""

    def __init__(self, reading: Reading, encoder: Encoder, known_reasons: Mapping[str, str]) -> None:
        """`known_reasons`: reasons for leaving a document out whose first place needs not be found again."""
        self._reading = reading
        self._encoder = encoder
        self._known = known_reasons

    def __call__(self, task: Work) -> Piece:
        """Read and encode.

        Raises DataError for the first document that cannot be read (`on_error="raise"`), and for one that
        has too many tokens for the format.
        """
        if task.chunk is None:
            assert task.damage is not None, task
            return self._damaged(task, task.damaged_at, task.damage)
        chunk = task.chunk
        try:
            payload = chunk.load()
        except DamagedFile as damage:
            return self._damaged(task, chunk.start, damage)
        input_hash = payload_hash(payload)  # before encoding, which removes temporary files
        encoded = self._encoder.encode(payload)
        remove_temporary(payload)
        if len(encoded.lengths) and int(encoded.lengths.max()) > MAX_DOCUMENT_TOKENS:
            raise self._too_long(chunk, payload, encoded)
        skipped: Counter[str] = Counter()
        first: dict[str, str] = {}
        for bad in encoded.bad:
            skipped[bad.reason] += 1
            refused = self._reading.on_error == "raise" and bad.reason != EMPTY_TEXT
            if not refused and (bad.reason in first or bad.reason in self._known):
                continue
            place = place_of(self._reading.files[chunk.file], chunk, payload, bad.position)
            first[bad.reason] = place if bad.reason == EMPTY_TEXT else f"{place}: {bad.message}"
            if refused:
                raise DataError(first[bad.reason])
        return Piece(
            source=task.source,
            start=chunk.start,
            stop=chunk.stop,
            stored_bytes_read=task.stored_bytes_read,
            input_bytes=payload_bytes(payload),
            input_hash=input_hash,
            encoded=encoded,
            skipped=skipped,
            first_skipped=first,
        )

    def _too_long(self, chunk: Chunk, payload: Payload, encoded: Encoded) -> DataError:
        number, position = int(encoded.lengths.argmax()), 0
        if isinstance(payload, JsonLines | Texts):  # others are one document
            documents = payload_documents(payload, self._reading.text_key)
            good = (position for position, found in documents if isinstance(found, str))
            position = next(islice(good, number, None))
        place = place_of(self._reading.files[chunk.file], chunk, payload, position)
        return too_long(f"{place}: the document", int(encoded.lengths[number]))

    def _damaged(self, task: Work, position: int, damage: DamagedFile) -> Piece:
        message = f"{place_name(self._reading.file(task.source))}: {damage.message}"
        if self._reading.on_error == "raise":
            raise DataError(message)
        return Piece(
            source=task.source,
            start=position,
            stop=position,
            stored_bytes_read=task.stored_bytes_read,
            input_bytes=0,
            input_hash=b"",
            encoded=None,
            skipped={damage.reason: 1},
            first_skipped={damage.reason: message},
        )


def payload_bytes(payload: Payload) -> int:
    """How much content a payload is."""
    if isinstance(payload, JsonLines):
        return len(payload.content)
    if isinstance(payload, Texts):
        return int(payload.offsets[-1] - payload.offsets[0])
    return payload.stop - payload.start


def payload_hash(payload: Payload) -> bytes:
    """xxh3_128 of what a payload says: two with the same hash give the same documents. 16 bytes."""
    if isinstance(payload, JsonLines):
        return xxhash.xxh3_128_digest(payload.content)
    digest = xxhash.xxh3_128()
    if isinstance(payload, Texts):
        digest.update(memoryview(payload.data)[int(payload.offsets[0]) : int(payload.offsets[-1])])
        digest.update(np.diff(payload.offsets).tobytes())
        digest.update(repr([index for index, _ in payload.bad]).encode())
        return digest.digest()
    with LongContent(payload) as content:
        for block in content.blocks():
            digest.update(block)
    return digest.digest()


def remove_temporary(payload: Payload) -> None:
    """Remove the temporary file that a payload may stand for, once it is done with."""
    if isinstance(payload, LongLine) and payload.temporary:
        payload.path.unlink(missing_ok=True)


def place_name(file: CorpusFile) -> str:
    """What to call a file in a message."""
    return "standard input" if file.path == STANDARD_INPUT else file.path


def with_sample(reading: Reading, items: Iterator[Work]) -> tuple[Iterator[Work], list[str]]:
    """Some texts from the beginning of `items` and from places all over the input, and `items` again from their start.

    What cannot be read gives no text here; encoding will come to it.
    """
    texts: list[str] = []
    first = next(items, None)
    if first is None:
        return items, texts
    if first.chunk is not None:
        first, found = _loaded(reading, first, first.chunk)
        texts += found
    for source, start, stop in _sample_places(reading):
        try:
            for chunk in islice(reading.chunks(source, start, stop), 1):
                texts += _texts(chunk.load(), reading.text_key)
        except DamagedFile:
            continue
    return chain([first], items), texts


def _loaded(reading: Reading, task: Work, chunk: Chunk) -> tuple[Work, list[str]]:
    """Work whose chunk is loaded, as standard input can be only once, and texts from it."""
    try:
        payload = chunk.load()
    except DamagedFile:
        return task, []
    return task._replace(chunk=chunk._replace(load=lambda: payload)), _texts(payload, reading.text_key)


def _sample_places(reading: Reading) -> Iterator[tuple[int, int, int | None]]:
    """(source, start, stop) of some sources evenly spaced; of places in the only one, where it can be entered anywhere.

    Standard input is left out, as it cannot be read twice, and datasets, as opening them takes long.
    """
    fractions = [place / _SAMPLE_PLACES for place in range(1, _SAMPLE_PLACES)]
    if len(reading.shares) == 1:
        share, size = reading.shares[0], reading.file(0).size_bytes
        if reading.is_plain(0) and size is not None:
            length = (size if share.stop is None else share.stop) - share.start
            starts = [share.start + int(length * fraction) for fraction in fractions]
            yield from ((0, start, start + _SAMPLE_LINES_BYTES) for start in starts)
        return
    for source in sorted({int(len(reading.shares) * fraction) for fraction in fractions}):
        path = reading.file(source).path
        if path != STANDARD_INPUT and not is_dataset(path):
            yield source, reading.shares[source].start, reading.shares[source].stop


def _texts(payload: Payload, text_key: str) -> list[str]:
    """A few texts of a payload, each cut to a length; none of a long line, whose text would have to be found first."""
    found: list[str | BadDocument] = []
    if isinstance(payload, JsonLines):
        lines = payload.content[:_SAMPLE_LINES_BYTES].split(b"\n")[:_SAMPLE_TEXTS]
        found = [json_text(line, text_key) for line in lines if line.strip()]
    elif isinstance(payload, Texts):
        bad = {index for index, _ in payload.bad}
        for index in range(min(_SAMPLE_TEXTS, len(payload.offsets) - 1)):
            start, stop = int(payload.offsets[index]), int(payload.offsets[index + 1])
            if index not in bad:
                part = bytes(payload.data[start : min(stop, start + 4 * _SAMPLE_CHARACTERS)])
                found.append(part.decode("utf-8", "ignore"))
    elif isinstance(payload, LongText):
        with LongContent(payload) as content:
            begin = content.read(0, _SAMPLE_LINES_BYTES).removeprefix(BOM).replace(b"\r\n", b"\n")
        text = begin.decode("utf-8", "ignore")
        found += [text[at : at + _SAMPLE_CHARACTERS] for at in range(0, len(text), _SAMPLE_CHARACTERS)][:_SAMPLE_TEXTS]
    return [text[:_SAMPLE_CHARACTERS] for text in found if isinstance(text, str) and _is_unicode(text)]


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
