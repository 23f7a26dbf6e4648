"""The beginning of a datatrove pipeline: corpus files of every kind the builder reads, documents out.

Where datatrove's own readers give whole files to tasks and warn of lines that they cannot read, this one cuts large
files, so that tasks have equal work, and says file and line of what is wrong. It does not know what follows it.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from megagpt.data.build_input import remove_temporary
from megagpt.data.corpus import STANDARD_INPUT, CorpusFile, OnError, corpus_files
from megagpt.data.corpus_formats import BadDocument, DamagedFile
from megagpt.data.datatrove_base import Document, DocumentsPipeline, PipelineStep
from megagpt.data.encoded import EMPTY_TEXT
from megagpt.data.encoders_library import payload_documents
from megagpt.data.sources import Chunk, FileRange, Payload, assign_ranges, chunks, place_of
from megagpt.errors import DataError


class CorpusReader(PipelineStep):
    """A datatrove step that reads the documents of `inputs`; task r of n reads the r-th of n contiguous shares.

    A document's id is FILE@POSITION (byte of the content, or row), its metadata has `file_path`. Statistics:
    `documents`; `dropped_empty text`; with `on_error="skip"` `dropped_REASON` for each document, or rest of a damaged
    file, that cannot be read.
    """

    type = "📖 - READER"
    name = "📂 Corpus"

    def __init__(self, inputs: Sequence[str], text_key: str = "text", on_error: OnError = "raise") -> None:
        """Lists the files, so that all tasks share out the same ones. Raises DataError, as the builder does."""
        super().__init__()
        if STANDARD_INPUT in inputs:
            raise DataError("standard input cannot be shared out to tasks; write it to a file and name that")
        self.files = corpus_files(inputs)
        self.text_key = text_key
        self.on_error: OnError = on_error

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """This task's documents, after those of `data`. Raises DataError at the first that cannot be read."""
        yield from data or ()
        with tempfile.TemporaryDirectory(prefix="megagpt-") as spool:
            for share in assign_ranges(self.files, rank, world_size):
                yield from self._documents(self.files[share.file], share, Path(spool))

    def _documents(self, file: CorpusFile, share: FileRange, spool: Path) -> Iterator[Document]:
        try:
            for chunk in chunks(file, share.file, self.text_key, share.start, share.stop, spool=spool):
                payload = chunk.load()
                for position, found in payload_documents(payload, self.text_key):
                    if isinstance(found, BadDocument):
                        self._refuse(file, chunk, payload, position, found)
                        continue
                    self.stat_update("documents")
                    yield Document(found, f"{file.path}@{chunk.start + position}", metadata={"file_path": file.path})
                remove_temporary(payload)
        except DamagedFile as damage:
            if self.on_error == "raise":
                raise DataError(f"{file.path}: {damage.message}") from damage
            self.stat_update(f"dropped_{damage.reason}")

    def _refuse(self, file: CorpusFile, chunk: Chunk, payload: Payload, position: int, bad: BadDocument) -> None:
        if self.on_error == "raise" and bad.reason != EMPTY_TEXT:
            raise DataError(f"{place_of(file, chunk, payload, position)}: {bad.message}")
        self.stat_update(f"dropped_{bad.reason}")
