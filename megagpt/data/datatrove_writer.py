"""The end of a datatrove pipeline: documents in, a part of an indexed dataset for each task out.

Task r of n writes PREFIX.task-r-of-n (.bin, .idx, .json), as a build does; `megagpt data merge` joins them.
Knows nothing of what the steps before it read or removed.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from megagpt.data.dataset_output import full_disk_named
from megagpt.data.datatrove_base import Document, DocumentsPipeline, PipelineStep, logger
from megagpt.data.encoders import EMPTY_TEXT, Encoded, Encoder, make_engine
from megagpt.data.indexed import dataset_files, token_dtype
from megagpt.data.indexed_writer import IndexedWriter
from megagpt.data.parts import task_prefix
from megagpt.data.sidecar import Shard, Sidecar, Source
from megagpt.data.sources_types import Texts
from megagpt.durable import write_whole
from megagpt.errors import DataError
from megagpt.tokenizer import load_tokenizer
from megagpt.tokenizer.protocol import Tokenizer

_BATCH_TEXT_BYTES = 1 << 20
_BATCH_DOCUMENTS = 4096
_SHARD_TEXT_BYTES = 64 << 20
_UNKNOWN_SOURCE = "datatrove"


class IndexedDatasetWriter(PipelineStep):
    """A datatrove step that tokenizes documents into a part of an indexed dataset, and passes them on.

    Each document becomes its token ids and the end-of-document id, in the order it comes; one without text is counted
    and left out. A part appears when all of it is on the disk. A task that runs again replaces its part: which tasks
    run again is for datatrove's completion markers to say. A task without documents writes only the .json.

    Statistics: `documents` and their `tokens`, `characters` and `bytes` (UTF-8); `dropped_empty text`.
    """

    type = "💽 - WRITER"
    name = "📚 Indexed dataset"

    def __init__(self, output: str | Path, tokenizer: str | Path) -> None:
        """`output`: the prefix, on a file system that all tasks see; `tokenizer`: its file. Raises DataError."""
        super().__init__()
        if "://" in str(output):
            raise DataError(f"output {output} is not a path; write to a file system that every task sees")
        loaded = load_tokenizer(tokenizer)  # a wrong file is an error here, not in each task
        self.output = os.path.abspath(output)
        self.tokenizer = f"{loaded.kind}:{os.path.abspath(loaded.path)}"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write this task's part; yields every document that it is given."""
        tokenizer = load_tokenizer(self.tokenizer)
        prefix = task_prefix(self.output, rank, world_size)
        tally = _Tally()
        encoder: Encoder | None = None
        with (
            IndexedWriter(prefix, token_dtype(tokenizer.vocab_size), overwrite=True) as writer,
            tempfile.TemporaryDirectory(prefix="megagpt-") as spool,
        ):
            for batch in _batches(data):
                with self.track_time(unit="batch"):
                    documents = [document for document in batch if document.text]
                    texts = _joined(documents)
                    encoder = encoder or _encoder(tokenizer, writer.dtype, Path(spool), documents)
                    if documents:
                        encoded = encoder.encode(texts)
                        with full_disk_named(prefix):
                            self._add(writer, tally, documents, encoded)
                for document in batch:
                    if not document.text:
                        tally.skipped += 1
                        self.stat_update(f"dropped_{EMPTY_TEXT}")
                    yield document
            sidecar = tally.sidecar(tokenizer, writer)
            if writer.num_documents:
                with full_disk_named(prefix):
                    writer.finish(sidecar.to_json())
        if sidecar.num_documents == 0:
            _write_empty_part(prefix, sidecar)

    def _add(self, writer: IndexedWriter, tally: "_Tally", documents: list[Document], encoded: Encoded) -> None:
        assert isinstance(encoded.ids, bytes), type(encoded.ids)
        assert not encoded.bad, encoded.bad
        ids = np.frombuffer(encoded.ids, dtype=writer.dtype.newbyteorder("<"))
        writer.add_documents(ids, encoded.lengths.tolist())
        for document, row in zip(documents, np.split(ids, np.cumsum(encoded.lengths)[:-1]), strict=True):
            size = tally.add(document, row)
            self.stat_update("documents")
            self.stat_update("tokens", value=size.tokens)
            self.stat_update("characters", value=size.characters)
            self.stat_update("bytes", value=size.text_bytes)


class _Size(NamedTuple):
    tokens: int
    text_bytes: int
    characters: int


class _Tally:
    """What a part's sidecar says, counted as it is written; a source is the file that a document says it is from."""

    def __init__(self) -> None:
        self.skipped = 0
        self._numbers: dict[str, int] = {}  # path -> number of its source
        self._totals: list[list[int]] = []  # of each source: documents, tokens, bytes, characters
        self._shards: list[Shard] = []
        self._open = _OpenShard()

    def add(self, document: Document, ids: NDArray) -> _Size:
        """Count a document and its ids (in the dataset's dtype)."""
        path = str(document.metadata.get("file_path", _UNKNOWN_SOURCE))
        number = self._numbers.setdefault(path, len(self._numbers))
        if number == len(self._totals):
            self._totals.append([0, 0, 0, 0])
        text = document.text.encode("utf-8")
        totals, size = self._totals[number], _Size(len(ids), len(text), len(document.text))
        self._open.add(number, totals[0], text, ids)
        for place, value in enumerate((1, *size)):
            totals[place] += value
        if self._open.text_bytes >= _SHARD_TEXT_BYTES:
            self._shards.append(self._open.close())
            self._open = _OpenShard()
        return size

    def sidecar(self, tokenizer: Tokenizer, writer: IndexedWriter) -> Sidecar:
        """The sidecar of everything that was added."""
        shards = [*self._shards, *([self._open.close()] if self._open.num_documents else [])]
        totals = np.array(self._totals, dtype=np.int64).reshape(-1, 4).sum(axis=0).tolist()
        return Sidecar(
            tokenizer_kind=tokenizer.kind,
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            max_token_id=writer.max_token_id,
            num_documents=totals[0],
            num_tokens=totals[1],
            text_bytes=totals[2],
            num_characters=totals[3],
            sources=tuple(Source(path, None, *self._totals[number]) for path, number in self._numbers.items()),
            skipped={EMPTY_TEXT: self.skipped} if self.skipped else {},
            shards=tuple(shards),
        )


class _OpenShard:
    """A shard that still grows; a position is the number of a document among those that came from its source."""

    def __init__(self) -> None:
        self.num_documents = self.num_tokens = self.text_bytes = 0
        self._first = self._last = (0, 0)
        self._input_hash = xxhash.xxh3_128()
        self._hash = xxhash.xxh3_128()

    def add(self, source: int, position: int, text: bytes, ids: NDArray) -> None:
        if self.num_documents == 0:
            self._first = (source, position)
        self._last = (source, position + 1)
        self.num_documents += 1
        self.num_tokens += len(ids)
        self.text_bytes += len(text)
        self._input_hash.update(text)
        self._hash.update(ids.tobytes())

    def close(self) -> Shard:
        return Shard(
            *self._first,
            *self._last,
            num_documents=self.num_documents,
            num_tokens=self.num_tokens,
            text_bytes=self.text_bytes,
            input_hash=self._input_hash.hexdigest(),
            hash=self._hash.hexdigest(),
        )


def _batches(data: DocumentsPipeline) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in data or ():
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_TEXT_BYTES or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoder(tokenizer: Tokenizer, dtype: np.dtype, spool: Path, batch: list[Document]) -> Encoder:
    """The fastest encoder; datatrove's log says where it is not the native one."""
    engine = make_engine(tokenizer, dtype, "text", spool, [document.text for document in batch])
    if engine.note is not None:
        logger.warning(engine.note)
    return engine.encoder()


def _joined(documents: list[Document]) -> Texts:
    contents = []
    for document in documents:
        try:
            contents.append(document.text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise DataError(
                f"document {document.id} has a lone surrogate U+{ord(document.text[error.start]):04X} at character "
                f"{error.start}, which is no character; repair or remove it in a step before the writer"
            ) from error
    return Texts(b"".join(contents), np.cumsum([0, *map(len, contents)], dtype=np.int64))


def _write_empty_part(prefix: str, sidecar: Sidecar) -> None:
    """Only the sidecar, which says that there is nothing; what an earlier run left goes first."""
    bin_path, idx_path, json_path = dataset_files(prefix)
    for stale in (idx_path, bin_path):
        stale.unlink(missing_ok=True)
    write_whole(json_path, sidecar.to_json())
