"""Is a dataset what was built? In: PREFIX.bin, .idx and .json. Out: every place where they do not agree.

One pass over .bin on several threads: the hash of each shard, ids inside the vocabulary, an end-of-document id at the
end of each document and nowhere else. Memory does not depend on the size. Knows nothing of text.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from megagpt.data.idx_file import IdxFile
from megagpt.data.parts import Part, open_part
from megagpt.data.sidecar import Shard, Sidecar
from megagpt.errors import DataError

_READ_BYTES = 1 << 20  # stays in a core's cache between hashing and looking
_SHOWN_PROBLEMS = 20
OnBytes = Callable[[int, int], None]  # bytes done, bytes in all
T = TypeVar("T")
R = TypeVar("R")


class Verification(NamedTuple):
    """What was found. `num_shards`: hashes compared, 0 where the dataset has none; no `problems`: all is well."""

    prefix: str
    num_bytes: int
    num_shards: int
    seconds: float
    checked_ids: bool
    problems: tuple[str, ...]

    def lines(self) -> list[str]:
        """The finding in words; call it where there are no problems."""
        hashes = f"{self.num_shards} shards have their hash" if self.num_shards else "no hashes to compare with"
        ids = "ids and document ends are right" if self.checked_ids else "nothing says what its ids should be"
        speed = self.num_bytes / 1e9 / self.seconds
        return [f"verified       {hashes}; {ids} ({self.seconds:.2f} s, {speed:.1f} GB/s)"]

    def raise_problems(self) -> None:
        """Raises DataError where something is wrong, with the first 20 places."""
        if self.problems:
            shown = list(self.problems[:_SHOWN_PROBLEMS])
            if len(self.problems) > len(shown):
                shown.append(f"and {len(self.problems) - len(shown)} more")
            raise DataError("\n".join([f"dataset {self.prefix} is damaged; copy it again or rebuild it:", *shown]))


class _Stretch(NamedTuple):
    """Whole documents that are read together: a shard, or a run of documents where there are no shards."""

    first_document: int
    stop_document: int
    first_token: int
    stop_token: int


class _Found(NamedTuple):
    hash: str
    lowest: int
    highest: int
    num_ends: int  # end-of-document ids
    first_open: int  # first document that is empty or does not end with one; -1: none


def verify_dataset(prefix: str, workers: int = 1, on_bytes: OnBytes | None = None) -> Verification:
    """Read the whole dataset and compare; `workers` threads.

    Raises DataError where the files cannot be compared at all: one is missing, truncated, or the index is damaged.
    """
    started = time.perf_counter()
    part, idx = _with_documents(prefix)
    idx.check()
    sidecar = part.sidecar
    problems = [] if sidecar is None else list(_count_problems(idx, sidecar))
    hashed = sidecar is not None and bool(sidecar.shards) and not problems
    shards = sidecar.shards if sidecar is not None and hashed else ()
    stretches = shard_stretches(shards) if shards else _document_stretches(idx)
    eod_id = sidecar.eod_id if sidecar is not None else None
    scan = partial(_scan, part.bin_path, idx, eod_id)
    highest = -1
    for number, found in enumerate(_in_threads(scan, stretches, workers)):
        highest = max(highest, found.highest)
        stretch = stretches[number]
        if on_bytes is not None:
            on_bytes(stretch.stop_token * idx.dtype.itemsize, part.bin_bytes)
        if shards and sidecar is not None:
            problems += _hash_problems(part, sidecar, number, stretch, found.hash)
        problems += _id_problems(part, stretch, found)
    if sidecar is not None and highest != sidecar.max_token_id:
        problems.append(f"its largest id is {highest}; its .json says {sidecar.max_token_id}")
    return Verification(
        prefix=part.prefix,
        num_bytes=part.bin_bytes,
        num_shards=len(shards),
        seconds=time.perf_counter() - started,
        checked_ids=sidecar is not None,
        problems=tuple(problems),
    )


def verify_share(prefix: str, rank: int, num_ranks: int, workers: int, on_round: Callable[[], None]) -> Verification:
    """Read the `rank`-th of `num_ranks` shares of a dataset that must have hashes; the ranks together read all of it.

    The `.idx` has no hash of its own: rank 0 checks it against itself, and each share says whether documents end where
    it has them end. `on_round` is called equally often on every rank, after at most `workers` shards. Raises DataError
    where there are no hashes, or the files cannot be compared at all.
    """
    started = time.perf_counter()
    part, idx = _with_documents(prefix)
    sidecar = part.sidecar
    if sidecar is None or not sidecar.shards:
        why = "it has no .json beside it" if sidecar is None else "its .json is of an older format, or merged from such"
        raise DataError(
            f"dataset {part.prefix} has no recorded hashes to verify: {why}; build it again with `megagpt data build "
            f"INPUT --tokenizer TOKENIZER --output {part.prefix}`, or set data.verify_hashes = false"
        )
    if rank == 0:
        idx.check()
    problems = list(_count_problems(idx, sidecar))
    stretches = [] if problems else shard_stretches(sidecar.shards)
    scan = partial(_scan, part.bin_path, idx, sidecar.eod_id)
    num_shards = num_bytes = 0
    for start in range(0, len(stretches), num_ranks * workers):
        on_round()
        first = start + rank * workers
        for number, found in enumerate(_in_threads(scan, stretches[first : first + workers], workers), start=first):
            stretch = stretches[number]
            problems += _hash_problems(part, sidecar, number, stretch, found.hash)
            problems += _id_problems(part, stretch, found)
            num_shards += 1
            num_bytes += (stretch.stop_token - stretch.first_token) * idx.dtype.itemsize
    seconds = time.perf_counter() - started
    return Verification(part.prefix, num_bytes, num_shards, seconds, True, tuple(problems))


def _with_documents(prefix: str) -> tuple[Part, IdxFile]:
    part = open_part(prefix)
    if part.idx is None:
        raise DataError(f"{prefix} is the share of a task without documents: there is nothing to verify")
    return part, part.idx


def shard_stretches(shards: Sequence[Shard]) -> list[_Stretch]:
    """Where each shard lies in the dataset."""
    documents = list(accumulate((shard.num_documents for shard in shards), initial=0))
    tokens = list(accumulate((shard.num_tokens for shard in shards), initial=0))
    return [_Stretch(*numbers) for numbers in zip(documents[:-1], documents[1:], tokens[:-1], tokens[1:], strict=True)]


def hash_tokens(bin_path: Path, dtype: np.dtype, first_token: int, stop_token: int) -> str:
    """The hash of a shard: xxh3_128 (hex) of the bytes of these tokens."""
    digest = xxhash.xxh3_128()
    for _, ids in _token_blocks(bin_path, dtype, first_token, stop_token):
        digest.update(ids.data)
    return digest.hexdigest()


def wrong_hashes(bin_path: Path, dtype: np.dtype, shards: Sequence[Shard], workers: int) -> list[int]:
    """Numbers of the shards that do not have their hash in `bin_path`."""
    stretches = shard_stretches(shards)

    def hash_of(stretch: _Stretch) -> str:
        return hash_tokens(bin_path, dtype, stretch.first_token, stretch.stop_token)

    found = _in_threads(hash_of, stretches, workers)
    return [number for number, value in enumerate(found) if value != shards[number].hash]


def _in_threads(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Results in order; after an error, or when interrupted, what has not begun is dropped."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _scan(bin_path: Path, idx: IdxFile, eod_id: int | None, stretch: _Stretch) -> _Found:
    digest = xxhash.xxh3_128()
    lowest, highest, num_ends, first_open = 0, -1, 0, -1
    for start, stop in idx.document_blocks(stretch.first_document, stretch.stop_document):
        offsets = idx.token_offsets(start, stop)
        last_tokens = offsets[1:] - 1
        ended = np.zeros(stop - start, dtype=bool)
        for first, ids in _token_blocks(bin_path, idx.dtype, int(offsets[0]), int(offsets[-1])):
            digest.update(ids.data)
            lowest, highest = min(lowest, int(ids.min())), max(highest, int(ids.max()))
            if eod_id is not None:
                num_ends += int(np.count_nonzero(ids == eod_id))
                here = slice(*np.searchsorted(last_tokens, (first, first + len(ids))))
                ended[here] = ids[last_tokens[here] - first] == eod_id
        ended &= np.diff(offsets) > 0
        if eod_id is not None and first_open < 0 and not bool(ended.all()):
            first_open = start + int(np.argmin(ended))
    return _Found(digest.hexdigest(), lowest, highest, num_ends, first_open)


def _token_blocks(bin_path: Path, dtype: np.dtype, start: int, stop: int) -> Iterator[tuple[int, NDArray]]:
    """(first token, ids) of consecutive blocks; the memory of a block is used again for the next."""
    buffer = np.empty(_READ_BYTES // dtype.itemsize, dtype=dtype)
    with open(bin_path, "rb", buffering=0) as stream:
        stream.seek(start * dtype.itemsize)
        while start < stop:
            block = buffer[: min(len(buffer), stop - start)]
            view = block.data.cast("B")
            while view:
                count = stream.readinto(view)
                if not count:
                    raise DataError(f"{bin_path} became shorter while it was read; do not write to it, and try again")
                view = view[count:]
            yield start, block
            start += len(block)


def _document_stretches(idx: IdxFile) -> list[_Stretch]:
    """Runs of documents, where no shards are known."""
    blocks = list(idx.document_blocks())
    starts = [int(idx.token_offsets(start, start + 1)[0]) for start, _ in blocks]
    stops = [*starts[1:], idx.num_tokens]
    return [_Stretch(*block, start, stop) for block, start, stop in zip(blocks, starts, stops, strict=True)]


def _count_problems(idx: IdxFile, sidecar: Sidecar) -> Iterator[str]:
    """Do sources and shards add up to the dataset, and do shards begin where documents begin?"""
    counted = sum(source.num_documents for source in sidecar.sources)
    if counted not in (0, sidecar.num_documents):
        yield f"its .json has {sidecar.num_documents} documents, and {counted} in its sources"
    stretches = shard_stretches(sidecar.shards)
    if not stretches:
        return
    covered = (stretches[-1].stop_document, stretches[-1].stop_token)
    if covered != (sidecar.num_documents, sidecar.num_tokens):
        yield (
            f"its .json has {sidecar.num_documents} documents and {sidecar.num_tokens} tokens, and in its shards "
            f"{covered[0]} and {covered[1]}"
        )
        return
    for number, stretch in enumerate(stretches):
        if stretch.first_document < idx.num_documents:
            first = int(idx.token_offsets(stretch.first_document, stretch.first_document + 1)[0])
            if first != stretch.first_token:
                yield (
                    f"shard {number} begins with document {stretch.first_document}, which is at token {first} in "
                    f"{idx.path.name} and at {stretch.first_token} in its .json"
                )
                return


def _id_problems(part: Part, stretch: _Stretch, found: _Found) -> Iterator[str]:
    sidecar = part.sidecar
    assert part.idx is not None, part
    where = f"in documents {stretch.first_document} to {stretch.stop_document - 1}"
    if found.lowest < 0:
        yield f"{where} there is a negative id, {found.lowest}"
    if sidecar is None:
        return
    if found.highest >= sidecar.vocab_size:
        yield f"{where} there is id {found.highest}, beyond the vocabulary of {sidecar.vocab_size}"
    if found.first_open >= 0:
        yield f"document {found.first_open} does not end with the end-of-document id {sidecar.eod_id}"
    elif found.num_ends != stretch.stop_document - stretch.first_document:
        yield f"{where} there are {found.num_ends} end-of-document ids (id {sidecar.eod_id})"


def _hash_problems(part: Part, sidecar: Sidecar, number: int, stretch: _Stretch, found: str) -> Iterator[str]:
    assert part.idx is not None, part
    size = part.idx.dtype.itemsize
    shard = sidecar.shards[number]
    if found == shard.hash:
        return
    yield (
        f"shard {number} of {len(sidecar.shards)} does not have its hash: bytes {stretch.first_token * size} to "
        f"{stretch.stop_token * size} of {part.bin_path} (documents {stretch.first_document} to "
        f"{stretch.stop_document - 1}), built from {source_range(sidecar, shard)}; "
        f"{shard.hash} was written, {found} is there"
    )


def source_range(sidecar: Sidecar, shard: Shard) -> str:
    """The input that a shard was built from, in words."""
    first, last = sidecar.sources[shard.first_source].path, sidecar.sources[shard.last_source].path
    if shard.first_source == shard.last_source:
        return f"{first}, positions {shard.first_position} to {shard.last_position}"
    between = shard.last_source - shard.first_source - 1
    others = f", {between} files between," if between else ""
    return f"{first} from position {shard.first_position}{others} to {last} at {shard.last_position}"
