"""One side of a split being written. In: runs of documents and which of them are its own. Out: a dataset.

Lengths wait in temporary files, so memory does not depend on the number of documents. Does not know how documents are
chosen.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from megagpt.data.dataset_output import DatasetOutput
from megagpt.data.idx_file import BLOCK_ENTRIES, IndexPart, write_index
from megagpt.data.merge_sidecars import shards_cover
from megagpt.data.parts import Part
from megagpt.data.sidecar import Shard, Sidecar, Source


class Side:
    """A dataset being written from some of another's documents; lengths wait in files beside it."""

    def __init__(self, files: DatasetOutput, part: Part, stack: ExitStack) -> None:
        assert part.idx is not None, part
        self.files = stack.enter_context(files)
        self._sidecar = part.sidecar
        self._dtype = part.idx.dtype
        folder = Path(files.prefix).parent
        self._lengths = _Spool(folder, np.dtype("<i4"), stack)
        self._ends = _Spool(folder, np.dtype("<i8"), stack)
        self._origins = _Origins(part.sidecar) if part.sidecar is not None else None
        self.num_documents = self.num_tokens = self._num_sequences = 0
        self._max_token_id = -1

    def add(
        self,
        first_document: int,
        mine: NDArray[np.bool_],
        ids: NDArray,
        document_lengths: NDArray[np.int64],
        sequence_lengths: NDArray[np.int32],
        sequences: NDArray[np.int64],
    ) -> None:
        """Take those documents of a run that are `mine` [documents]; `sequences` [documents] of each."""
        kept = ids[np.repeat(mine, document_lengths)]
        if self._origins is not None:
            self._origins.add(first_document, mine, kept, document_lengths)
        if len(kept):
            self._max_token_id = max(self._max_token_id, int(kept.max()))
        self.files.bin.write(kept.data)
        self._lengths.write(sequence_lengths[np.repeat(mine, sequences)])
        self._ends.write(self._num_sequences + np.cumsum(sequences[mine]))
        self.num_documents += int(np.count_nonzero(mine))
        self.num_tokens += len(kept)
        self._num_sequences += int(sequences[mine].sum())

    def finish(self, others: str) -> None:
        """Write index and sidecar; `others` is the reason for which the rest of the documents are left out."""
        index = IndexPart(self._num_sequences, self.num_documents, self._lengths, self._ends)
        num_tokens = write_index(self.files.idx, self._dtype, index)
        assert num_tokens == self.num_tokens, (num_tokens, self.num_tokens)
        self.files.finish_writing(
            None if self._sidecar is None else self._made_sidecar(self._sidecar, others).to_json()
        )

    def _made_sidecar(self, whole: Sidecar, others: str) -> Sidecar:
        """Sources and shards as in the whole, with what this side got of each; text sizes are not known of a part."""
        assert self._origins is not None
        return replace(
            whole,
            max_token_id=self._max_token_id,
            num_documents=self.num_documents,
            num_tokens=self.num_tokens,
            text_bytes=0,
            num_characters=0,
            sources=self._origins.sources(),
            skipped={others: whole.num_documents - self.num_documents},
            shards=self._origins.shards(),
        )


class _Spool:
    """Numbers kept in a temporary file; iterating gives them back in blocks, as often as wanted."""

    def __init__(self, folder: Path, dtype: np.dtype, stack: ExitStack) -> None:
        self._stream = stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 (the stack closes it)
        self._dtype = dtype

    def write(self, numbers: NDArray) -> None:
        self._stream.write(numbers.astype(self._dtype, copy=False).data)

    def __iter__(self) -> Iterator[NDArray]:
        self._stream.seek(0)
        while block := self._stream.read(BLOCK_ENTRIES * self._dtype.itemsize):
            yield np.frombuffer(block, dtype=self._dtype)


class _Origins:
    """Which sources and shards of the whole a side's documents come from, and the hash of what it got of each shard."""

    def __init__(self, whole: Sidecar) -> None:
        self._whole = whole
        known = sum(source.num_documents for source in whole.sources) == whole.num_documents
        self._sources = _Places([source.num_documents for source in whole.sources]) if known else None
        self._shards = _Places([shard.num_documents for shard in whole.shards]) if shards_cover(whole) else None
        self._hashes = [""] * len(whole.shards)
        self._current = -1  # the shard that is being hashed
        self._digest = xxhash.xxh3_128()

    def add(self, first_document: int, mine: NDArray[np.bool_], kept: NDArray, lengths: NDArray[np.int64]) -> None:
        """Count the documents that are `mine` of a run; `kept` are their ids, `lengths` [documents] of the run."""
        if self._sources is not None:
            self._sources.add(first_document, mine, lengths)
        if self._shards is None:
            return
        self._shards.add(first_document, mine, lengths)
        ends = np.concatenate(([0], np.cumsum(np.where(mine, lengths, 0))))
        for shard, start, stop in self._shards.cuts(first_document, len(mine)):
            if shard != self._current:
                self._current, self._digest = shard, xxhash.xxh3_128()
            self._digest.update(kept[ends[start] : ends[stop]].data)
            self._hashes[shard] = self._digest.hexdigest()

    def sources(self) -> tuple[Source, ...]:
        """The sources of the whole with this side's counts; without counts where the whole has none."""
        if self._sources is None:
            return self._whole.sources
        counts = zip(self._whole.sources, self._sources.documents, self._sources.tokens, strict=True)
        return tuple(
            replace(source, num_documents=int(documents), num_tokens=int(tokens), text_bytes=0, num_characters=0)
            for source, documents, tokens in counts
        )

    def shards(self) -> tuple[Shard, ...]:
        """The shards of the whole of which this side has documents, with its counts and hash."""
        if self._shards is None:
            return ()
        numbers = np.flatnonzero(self._shards.documents).tolist()
        return tuple(
            replace(
                self._whole.shards[number],
                num_documents=int(self._shards.documents[number]),
                num_tokens=int(self._shards.tokens[number]),
                text_bytes=0,
                hash=self._hashes[number],
            )
            for number in numbers
        )


class _Places:
    """Consecutive stretches of the whole's documents, and what a side got of each."""

    def __init__(self, sizes: list[int]) -> None:
        self._ends = np.cumsum(np.array(sizes, dtype=np.int64))
        self.documents = np.zeros(len(sizes), dtype=np.int64)
        self.tokens = np.zeros(len(sizes), dtype=np.int64)

    def add(self, first_document: int, mine: NDArray[np.bool_], lengths: NDArray[np.int64]) -> None:
        for place, start, stop in self.cuts(first_document, len(mine)):
            self.documents[place] += np.count_nonzero(mine[start:stop])
            self.tokens[place] += lengths[start:stop][mine[start:stop]].sum()

    def cuts(self, first_document: int, num_documents: int) -> Iterator[tuple[int, int, int]]:
        """(stretch, first, stop) for each stretch that a run of documents touches, places within the run."""
        start = 0
        while start < num_documents:
            place = int(np.searchsorted(self._ends, first_document + start, side="right"))
            stop = min(int(self._ends[place]) - first_document, num_documents)
            yield place, start, stop
            start = stop
