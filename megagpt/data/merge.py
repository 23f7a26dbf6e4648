"""Joins datasets. In: prefixes of datasets with the same tokenizer and id type. Out: one dataset with all documents.

The .bin files are joined by the system (a file system that shares blocks copies nothing), the indexes by blocks of
numbers, the sidecars as text. Memory does not depend on the number of documents. Knows nothing of tokenizers.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megagpt.data.copying import CopyWay, append_file, copy_ways
from megagpt.data.dataset_output import DatasetOutput, full_disk_named
from megagpt.data.idx_file import BLOCK_ENTRIES, IdxFile, IndexPart, write_index
from megagpt.data.indexed import HEADER, dataset_files
from megagpt.data.merge_sidecars import merge_sidecars
from megagpt.data.parts import Part, open_parts, part_prefixes, task_of
from megagpt.data.verify import hash_tokens, shard_stretches, wrong_hashes
from megagpt.errors import DataError

OnBytes = Callable[[int, int], None]  # bytes done, bytes in all


class MergeReport(NamedTuple):
    """A finished merge. `ways`: how .bin was copied; `notes`: what the result lacks, and why."""

    prefix: str
    num_parts: int
    num_empty_parts: int
    num_documents: int
    num_tokens: int
    bin_bytes: int
    has_sidecar: bool
    ways: tuple[str, ...]
    seconds: float
    verified_shards: int | None
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report in words."""
        empty = f", {self.num_empty_parts} of them without documents" if self.num_empty_parts else ""
        lines = [
            f"dataset        {self.prefix}.bin, .idx{', .json' if self.has_sidecar else ''} "
            f"({self.bin_bytes / 1e6:.2f} MB)",
            f"joined         {self.num_parts} datasets{empty}, by {' and '.join(self.ways)}",
            f"documents      {self.num_documents}",
            f"tokens         {self.num_tokens}",
            f"time           {self.seconds:.2f} s, {self.bin_bytes / 1e6 / self.seconds:.0f} MB/s",
        ]
        if self.verified_shards is not None:
            lines.append(f"verified       the hashes of {self.verified_shards} shards, read from the new file")
        return [*lines, *(f"note           {note}" for note in self.notes)]


def merge_datasets(
    output: str | Path,
    inputs: Sequence[str],
    verify: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    on_bytes: OnBytes | None = None,
    ways: Sequence[CopyWay] | None = None,
) -> MergeReport:
    """Write the dataset `output`: the documents of `inputs` (prefixes, globs), one after the other, all or nothing.

    With `verify` the hash of every shard is computed from the new file before it gets its name, on `workers` threads.
    `ways`: how to copy, in the order to try; unset: what the system has. Raises DataError for parts that are damaged,
    missing or do not fit together, an output that exists or is being written, and a full disk.
    """
    started = time.perf_counter()
    prefixes = part_prefixes(inputs)
    parts = open_parts(prefixes)
    _refuse_output_among(parts, output)
    joined = merge_sidecars(prefixes, [part.sidecar for part in parts], _one_build(prefixes))
    sidecar = joined.sidecar
    shards = sidecar.shards if sidecar is not None else ()
    if verify and not shards:
        raise DataError(f"--verify has no hashes to compare with ({joined.notes[-1]}); merge without it")
    bin_bytes = sum(part.bin_bytes for part in parts)
    index = _joined_index([part.idx for part in parts if part.idx is not None])
    idx_bytes = HEADER.size + 12 * index.num_sequences + 8 * (index.num_documents + 1)
    dtype = next(part.idx.dtype for part in parts if part.idx is not None)
    with full_disk_named(str(output), bin_bytes + idx_bytes), DatasetOutput(output, overwrite) as files:
        for part in parts:
            if part.idx is not None:
                part.idx.check()
        num_tokens = write_index(files.idx, dtype, index)
        assert num_tokens * dtype.itemsize == bin_bytes, (num_tokens, dtype, bin_bytes)
        used = _copy_bins(parts, files.bin.fileno(), bin_bytes, ways or copy_ways(), on_bytes)
        files.finish_writing(sidecar.to_json() if sidecar is not None else None)
        wrong = wrong_hashes(files.partial_bin, dtype, shards, workers) if verify else []
        if wrong:
            raise _wrong_shard(parts, wrong[0])
        files.publish()
    return MergeReport(
        prefix=files.prefix,
        num_parts=len(parts),
        num_empty_parts=sum(part.idx is None for part in parts),
        num_documents=index.num_documents,
        num_tokens=num_tokens,
        bin_bytes=bin_bytes,
        has_sidecar=sidecar is not None,
        ways=used,
        seconds=time.perf_counter() - started,
        verified_shards=len(shards) if verify else None,
        notes=joined.notes,
    )


def _copy_bins(
    parts: Sequence[Part], target: int, bin_bytes: int, ways: Sequence[CopyWay], on_bytes: OnBytes | None
) -> tuple[str, ...]:
    done = 0
    used: dict[str, None] = {}  # in the order of their use

    def on_copied(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if on_bytes is not None:
            on_bytes(done, bin_bytes)

    for part in parts:
        if part.bin_bytes:
            used[append_file(part.bin_path, part.bin_bytes, target, done, ways, on_copied)] = None
    return tuple(used)


class _Lengths:
    """Tokens of each sequence of all parts, in blocks."""

    def __init__(self, indexes: Sequence[IdxFile]) -> None:
        self._indexes = indexes

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        for index in self._indexes:
            for start in range(0, index.num_sequences, BLOCK_ENTRIES):
                yield index.lengths(start, min(start + BLOCK_ENTRIES, index.num_sequences))


class _Ends:
    """Sequences up to and with each document of all parts, in blocks."""

    def __init__(self, indexes: Sequence[IdxFile]) -> None:
        self._indexes = indexes

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        before = 0
        for index in self._indexes:
            for start, stop in index.document_blocks():
                yield index.bounds(start + 1, stop + 1) + before
            before += index.num_sequences


def _joined_index(indexes: Sequence[IdxFile]) -> IndexPart:
    return IndexPart(
        num_sequences=sum(index.num_sequences for index in indexes),
        num_documents=sum(index.num_documents for index in indexes),
        lengths=_Lengths(indexes),
        ends=_Ends(indexes),
    )


def _wrong_shard(parts: Sequence[Part], number: int) -> DataError:
    """What to say of shard `number` of the joined dataset: was the part damaged already, or only its copy?"""
    for part in parts:
        shards = part.sidecar.shards if part.sidecar is not None else ()
        if number < len(shards):
            break
        number -= len(shards)
    assert part.idx is not None, part
    stretch, size = shard_stretches(shards)[number], part.idx.dtype.itemsize
    found = hash_tokens(part.bin_path, part.idx.dtype, stretch.first_token, stretch.stop_token)
    where = f"{part.bin_path} bytes {stretch.first_token * size} to {stretch.stop_token * size} (its shard {number})"
    if found != shards[number].hash:
        return DataError(f"{where} do not have their hash: {part.prefix} is damaged; copy it again or rebuild it")
    return DataError(
        f"{where} were copied wrongly: the disk of the output is failing; choose another (nothing was kept)"
    )


def _one_build(prefixes: Sequence[str]) -> bool:
    """Whether the parts are the tasks of one build."""
    tasks = [task_of(prefix) for prefix in prefixes]
    return all(task is not None for task in tasks) and len({task.build for task in tasks if task is not None}) == 1


def _refuse_output_among(parts: Sequence[Part], output: str | Path) -> None:
    target = dataset_files(output)[0]
    for part in parts:
        if part.bin_path.resolve() == target.resolve():
            raise DataError(f"the output {output} is also an input; choose another output")
