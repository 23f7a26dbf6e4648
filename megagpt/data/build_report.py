"""What a build says of itself, while it runs, when it is done, and when it cannot go on. Knows not how it is done."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from megagpt.data.encoded import EMPTY_TEXT
from megagpt.data.journal import Committed
from megagpt.data.sidecar import Sidecar
from megagpt.errors import DataError

_INDEX_BYTES = 24  # a document: 20 in .idx, 4 in the lengths


class BuildProgress(NamedTuple):
    """How far a build has come. `input_bytes` is None where the size of the input is not known (standard input)."""

    input_bytes_read: int
    input_bytes: int | None
    num_documents: int
    num_tokens: int


class BuildReport(NamedTuple):
    """A finished build. Tokens include the end-of-document ids; `skipped` counts documents left out, by reason.

    `engine` is None where nothing was left to encode; `engine_note` says why a SentencePiece model was not encoded by
    the native core. The `kept_` numbers are what an earlier run of the same build had committed.
    """

    prefix: str
    num_documents: int
    num_tokens: int
    text_bytes: int
    num_characters: int
    max_token_id: int
    dtype: str
    bin_bytes: int
    num_shards: int
    seconds: float
    input_bytes_read: int  # by this run
    engine: str | None
    engine_note: str | None
    workers: int
    kept_shards: int
    kept_documents: int
    skipped: Mapping[str, int]
    skipped_lines: list[str]

    def lines(self) -> list[str]:
        """The report in words."""
        if self.num_documents == 0:
            return [f"dataset        {self.prefix}.json alone: there is no document in this share", *self.skipped_lines]
        per_token = max(self.num_tokens - self.num_documents, 1)
        lines = [
            f"dataset        {self.prefix}.bin, .idx, .json ({self.bin_bytes / 1e6:.2f} MB of {self.dtype})",
            f"documents      {self.num_documents}",
            f"tokens         {self.num_tokens} with one end-of-document id each; largest id {self.max_token_id}",
            f"text           {self.text_bytes / 1e6:.2f} MB, {self.num_characters / per_token:.3f} characters/token",
            f"shards         {self.num_shards}",
        ]
        if self.kept_shards:
            before = f"{_counted(self.kept_documents, 'document')} in {_counted(self.kept_shards, 'shard')}"
            lines.append(f"already there  {before}, from before")
        if self.engine is not None:
            lines.append(f"encoder        {self.engine}, {_counted(self.workers, 'thread')}")
        if self.engine_note is not None:
            lines.append(f"warning        slower than it could be: {self.engine_note}")
        rate = self.input_bytes_read / 1e6 / self.seconds
        lines.append(
            f"time           {self.seconds:.2f} s; {rate:.1f} MB/s of {self.input_bytes_read / 1e6:.2f} MB read"
        )
        return [*lines, *self.skipped_lines]


def skipped_lines(skipped: Mapping[str, int], first: Mapping[str, str]) -> list[str]:
    """What was left out, in words: number, reason and the first place, a line a reason."""
    return [f"{count} skipped: {reason}; first: {first[reason]}" for reason, count in skipped.items()]


def in_words(committed: Sequence[Committed]) -> str:
    """How much is committed."""
    documents = sum(record.shard.num_documents for record in committed)
    return f"{_counted(documents, 'document')} in {_counted(len(committed), 'shard')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Written(NamedTuple):
    """What a build has written when the disk is full."""

    num_documents: int
    bin_bytes: int


def disk_full(prefix: str, written: Written, bytes_read: int, input_bytes: int | None, kept: str) -> DataError:
    """The error for a full disk, with how much is needed where the size of the input is known."""
    if input_bytes and bytes_read:
        in_all = (written.bin_bytes + written.num_documents * _INDEX_BYTES) * input_bytes / bytes_read
        needed = f"about {in_all / 1e6:.1f} MB are needed in all"
    else:
        needed = "how much is needed in all is not known"
    return DataError(
        f"no space is left on the disk of {prefix}.bin after {written.bin_bytes / 1e6:.1f} MB; {needed}: free space "
        f"there or choose an output on another disk{kept or ' (nothing was kept)'}"
    )


def no_documents(paths: Sequence[str], sidecar: Sidecar, first_skipped: Mapping[str, str]) -> DataError:
    """The error for a corpus without a document."""
    corpus = " ".join(paths)
    if sidecar.skipped.get(EMPTY_TEXT):
        return DataError(f"every document of the corpus {corpus} is empty; check --text-key and the files")
    lines = "".join("\n" + line for line in skipped_lines(sidecar.skipped, first_skipped))
    return DataError(f"the corpus {corpus} has no document that can be read; check the files{lines}")
