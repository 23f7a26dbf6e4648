"""From a corpus to an indexed dataset. In: corpus files and a tokenizer. Out: PREFIX.bin, .idx and .json, and a report.

Each document becomes its token ids and the end-of-document id. Memory is bounded by one batch of documents and by the
longest document. Never imports torch.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megagpt.data.corpus import Document, OnError, ReadReport, corpus_files, read_documents
from megagpt.data.indexed import dataset_files, token_dtype
from megagpt.data.indexed_writer import IndexedWriter
from megagpt.data.sidecar import Sidecar, Source
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer

_BATCH_TEXT_BYTES = 1 << 20
_BATCH_DOCUMENTS = 4096
EMPTY_TEXT = "empty text"


class BuildProgress(NamedTuple):
    """How far a build has come. `input_bytes` is None where the size of the input is not known (standard input)."""

    input_bytes_read: int
    input_bytes: int | None
    num_documents: int
    num_tokens: int


class BuildReport(NamedTuple):
    """A finished build. Tokens include the end-of-document ids; `skipped` counts documents left out, by reason."""

    prefix: str
    num_documents: int
    num_tokens: int
    text_bytes: int
    num_characters: int
    max_token_id: int
    dtype: str
    bin_bytes: int
    seconds: float
    skipped: Mapping[str, int]
    skipped_lines: list[str]

    def lines(self) -> list[str]:
        """The report in words."""
        per_token = max(self.num_tokens - self.num_documents, 1)
        return [
            f"dataset        {self.prefix}.bin, .idx, .json ({self.bin_bytes / 1e6:.2f} MB of {self.dtype})",
            f"documents      {self.num_documents}",
            f"tokens         {self.num_tokens} with one end-of-document id each; largest id {self.max_token_id}",
            f"text           {self.text_bytes / 1e6:.2f} MB, {self.num_characters / per_token:.3f} characters/token",
            f"time           {self.seconds:.2f} s, {self.text_bytes / 1e6 / self.seconds:.1f} MB/s",
            *self.skipped_lines,
        ]


def build_dataset(
    inputs: Sequence[str],
    output: str | Path,
    tokenizer: Tokenizer,
    text_key: str = "text",
    on_error: OnError = "raise",
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport:
    """Tokenize the documents of `inputs` into the dataset `output` (a prefix), all or nothing.

    Documents with empty text are left out and counted. `workers`: threads of the tokenizer; the output does not depend
    on it. Raises DataError for bad input, an output that exists, and a full disk.
    """
    started = time.perf_counter()
    reading = ReadReport()
    files = corpus_files(inputs)
    sizes = [file.size_bytes for file in files]
    input_bytes = None if None in sizes else sum(size or 0 for size in sizes)
    text_bytes = num_characters = 0
    try:
        with IndexedWriter(output, token_dtype(tokenizer.vocab_size), overwrite) as writer:
            documents = read_documents(inputs, text_key, on_error, reading)
            for batch in _batches(_without_empty(documents, reading)):
                _add_batch(writer, [document.text for document in batch], tokenizer, workers)
                text_bytes += sum(document.num_bytes for document in batch)
                num_characters += sum(len(document.text) for document in batch)
                if on_progress is not None:
                    done = BuildProgress(
                        reading.stored_bytes_read, input_bytes, writer.num_documents, writer.num_tokens
                    )
                    on_progress(done)
            if writer.num_documents == 0:
                raise DataError(
                    f"every document of the corpus {' '.join(inputs)} is empty; check --text-key and the files"
                )
            sidecar = Sidecar(
                tokenizer_kind=tokenizer.kind,
                fingerprint=tokenizer.fingerprint,
                vocab_size=tokenizer.vocab_size,
                eod_id=tokenizer.eod_id,
                max_token_id=writer.max_token_id,
                num_documents=writer.num_documents,
                num_tokens=writer.num_tokens,
                text_bytes=text_bytes,
                num_characters=num_characters,
                sources=tuple(Source(file.path, file.size_bytes, 0, 0, 0, 0) for file in files),
                skipped=dict(reading.skipped),
                shards=(),
            )
            writer.finish(sidecar.to_json())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _disk_full(output, writer.num_tokens * writer.dtype.itemsize, reading, input_bytes) from error
    return BuildReport(
        prefix=str(output),
        num_documents=writer.num_documents,
        num_tokens=writer.num_tokens,
        text_bytes=text_bytes,
        num_characters=num_characters,
        max_token_id=writer.max_token_id,
        dtype=writer.dtype.name,
        bin_bytes=os.path.getsize(dataset_files(output)[0]),
        seconds=time.perf_counter() - started,
        skipped=dict(reading.skipped),
        skipped_lines=reading.skipped_lines(),
    )


def _without_empty(documents: Iterable[Document], report: ReadReport) -> Iterator[Document]:
    for document in documents:
        if document.text:
            yield document
        else:
            report.skip(EMPTY_TEXT, f"{document.path}:{document.line}")


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.num_bytes
        if size >= _BATCH_TEXT_BYTES or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _add_batch(writer: IndexedWriter, texts: list[str], tokenizer: Tokenizer, workers: int) -> None:
    rows = tokenizer.encode_batch(texts, num_threads=workers)
    for row in rows:
        row.append(tokenizer.eod_id)
    lengths = [len(row) for row in rows]
    writer.add_documents(np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=sum(lengths)), lengths)


def _disk_full(output: str | Path, written: int, reading: ReadReport, input_bytes: int | None) -> DataError:
    if input_bytes and reading.stored_bytes_read:
        needed = f"about {written * input_bytes / reading.stored_bytes_read / 1e6:.1f} MB are needed in all"
    else:
        needed = "how much is needed in all is not known"
    return DataError(
        f"no space is left on the disk of {output}.bin after {written / 1e6:.1f} MB; {needed}: free space there or "
        "choose an output on another disk (nothing was kept)"
    )
