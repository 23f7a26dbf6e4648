"""Whether an unfinished build may go on. In: its journal, what is asked now, the files. Out: DataError, or all is well.

What was written is compared with its hashes; so is every input that has changed since, as far as it was read: repairing
a line further on is no reason to start over.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from megagpt.data.build_input import Reading, payload_hash, place_name, remove_temporary
from megagpt.data.encoded import EMPTY_TEXT
from megagpt.data.indexed_writer import LENGTH_BYTES
from megagpt.data.journal import Committed, InputState, Part, Plan
from megagpt.data.shard_writer import BuildFiles
from megagpt.data.sources import Chunk, DamagedFile
from megagpt.errors import DataError

_BLOCK_BYTES = 4 << 20
_SHOWN_PATHS = 3


class Position(NamedTuple):
    """Where to go on. `begun`: the rest of the source's chunks, where they cannot be had a second time."""

    source: int
    position: int
    stored_bytes_read: int
    begun: Iterator[Chunk] | None = None


def input_state(path: str, size_bytes: int | None) -> InputState:
    """An input as it is now; one that is no file has no time of change."""
    try:
        return InputState(path, size_bytes, os.stat(path).st_mtime_ns if os.path.isfile(path) else None)
    except OSError:
        return InputState(path, size_bytes, None)


def changed_inputs(before: Sequence[InputState], now: Sequence[InputState]) -> list[str]:
    """Paths of the inputs whose content may differ: another size or time of change, or no such time."""
    return [new.path for old, new in zip(before, now, strict=True) if old != new or new.mtime_ns is None]


def check_same_request(before: Plan, now: Plan, committed: Sequence[Committed], prefix: str) -> None:
    """Raises DataError where the build was begun with other arguments, naming what differs."""
    unfinished = f"the unfinished build of {prefix} was begun with"
    fix = "use the same to go on, or start over with --restart"
    if (before.fingerprint, before.tokenizer_kind) != (now.fingerprint, now.tokenizer_kind):
        raise DataError(
            f"{unfinished} another tokenizer ({before.tokenizer_kind}, sha256 {before.fingerprint[:16]}…; now "
            f"{now.tokenizer_kind}, {now.fingerprint[:16]}…); {fix}"
        )
    tokens = (before.vocab_size, before.eod_id)
    if tokens != (now.vocab_size, now.eod_id):
        raise DataError(
            f"{unfinished} {tokens[0]} ids and end-of-document id {tokens[1]}; the tokenizer now has {now.vocab_size} "
            f"and {now.eod_id}; start over with --restart"
        )
    if before.text_key != now.text_key:
        raise DataError(f"{unfinished} --text-key {before.text_key!r}, now it is {now.text_key!r}; {fix}")
    if (before.task, before.num_tasks) != (now.task, now.num_tasks):
        raise DataError(
            f"{unfinished} --task {before.task} --num-tasks {before.num_tasks}, now {now.task} and {now.num_tasks}; "
            f"{fix}"
        )
    sizes = (before.chunk_bytes, before.long_line_bytes, before.shard_bytes)
    if sizes != (now.chunk_bytes, now.long_line_bytes, now.shard_bytes):
        raise DataError(f"{unfinished} another version of megagpt; finish it with that, or start over with --restart")
    if before.on_error == "skip" and now.on_error == "raise":
        left_out = {reason: count for record in committed for reason, count in record.skipped.items()}
        refused = [reason for reason in left_out if reason != EMPTY_TEXT]
        if refused:
            raise DataError(
                f"{unfinished} --on-error skip and has left documents out ({', '.join(refused)}), which --on-error "
                f"raise does not; {fix}"
            )
    _check_same_paths([state.path for state in before.inputs], [state.path for state in now.inputs], unfinished, fix)
    if before.shares != now.shares:
        changed = [new.path for old, new in zip(before.inputs, now.inputs, strict=True) if old != new]
        raise DataError(
            f"{_some(changed)} changed, which moves the shares of all {now.num_tasks} tasks; start all of them over "
            "with --restart, or repair lines without changing the size of a file (a line of spaces is passed over)"
        )


def verify_written(
    files: BuildFiles, bin_path: Path, committed: Sequence[Committed], itemsize: int, lengths: bool = True
) -> None:
    """Every committed byte is still what it was. Raises DataError, naming the file that differs."""
    hashes = [(record.shard.num_tokens * itemsize, record.shard.hash) for record in committed]
    _verify_file(bin_path, hashes)
    if lengths:
        _verify_file(
            files.lengths, [(record.shard.num_documents * LENGTH_BYTES, record.lengths_hash) for record in committed]
        )


def position_after(
    reading: Reading, committed: Sequence[Committed], changed: Sequence[str], complete: bool = False
) -> Position:
    """Where to go on, after comparing what was read of the inputs in `changed` with its hashes.

    `complete`: everything was read. Raises DataError where an input has other content where it was read.
    """
    if not committed:
        return Position(0, 0, 0)
    last = committed[-1]
    begun: Iterator[Chunk] | None = None
    to_compare = set(changed)
    parts_of: dict[int, list[Part]] = {}
    for record in committed:
        for part in record.parts:
            parts_of.setdefault(part.source, []).append(part)
    end = len(reading.shares) if complete else last.next_source
    for source in range(min(end + 1, len(reading.shares))):
        if reading.file(source).path not in to_compare:
            continue
        parts, share = parts_of.get(source, []), reading.shares[source]
        if source < end:
            _compare(reading, source, reading.chunks(source, share.start, share.stop), parts, whole=True)
        elif parts:
            once = reading.file(source).size_bytes is None
            chunks = reading.chunks(source, share.start, share.stop if once else last.next_position)
            _compare(reading, source, chunks, parts, whole=False)
            begun = chunks if once else None
    return Position(last.next_source, last.next_position, last.stored_bytes_read, begun)


def _compare(reading: Reading, source: int, chunks: Iterator[Chunk], parts: Sequence[Part], whole: bool) -> None:
    """The chunks are those that the parts were made from; `whole`: and there are no more of them."""
    name = place_name(reading.file(source))
    for part in parts:
        try:
            same = _hash_up_to(part.stop, part.start, chunks) == part.input_hash
        except DamagedFile:
            same = False
        if not same:
            raise DataError(
                f"{name} has changed where the unfinished build has read it already (from {part.start} to {part.stop} "
                "of its content); put the old file back, or start over with --restart"
            )
    if not whole:
        return
    damaged = False
    try:
        more = next(chunks, None) is not None
    except DamagedFile:
        more, damaged = False, True
    if more or damaged != bool(parts and parts[-1].damaged):
        raise DataError(
            f"{name} has other content at its end than when the unfinished build read all of it; put the old file "
            "back, or start over with --restart"
        )


def _hash_up_to(stop: int, start: int, chunks: Iterator[Chunk]) -> str | None:
    """The hash of the chunks from `start` up to `stop`; None where they do not end there."""
    hashes = bytearray()
    here = start
    while here < stop:
        chunk = next(chunks, None)
        if chunk is None or chunk.stop > stop:
            return None
        payload = chunk.load()
        hashes += payload_hash(payload)
        remove_temporary(payload)
        here = chunk.stop
    return xxhash.xxh3_128_hexdigest(hashes)


def _check_same_paths(before: list[str], now: list[str], unfinished: str, fix: str) -> None:
    if before == now:
        return
    old, new = set(before), set(now)
    added = [path for path in now if path not in old]
    removed = [path for path in before if path not in new]
    changes = [f"without {_some(added)}"] if added else []
    changes += [f"with {_some(removed)}"] if removed else []
    raise DataError(f"{unfinished} other inputs: {' and '.join(changes) or 'the same files in another order'}; {fix}")


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN_PATHS} more" if len(paths) > _SHOWN_PATHS else ""
    return ", ".join(paths[:_SHOWN_PATHS]) + more


def _verify_file(path: Path, hashes: Sequence[tuple[int, str]]) -> None:
    """The file begins with parts of these sizes and hashes."""
    try:
        stream = open(path, "rb", buffering=0)  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        if not sum(size for size, _ in hashes):
            return
        raise DataError(f"{path}, which an unfinished build wrote, is gone; start over with --restart") from None
    with stream:
        begin = 0
        for size, expected in hashes:
            digest, left = xxhash.xxh3_128(), size
            while left and (block := stream.read(min(_BLOCK_BYTES, left))):
                digest.update(block)
                left -= len(block)
            if left or digest.hexdigest() != expected:
                raise DataError(
                    f"{path} is damaged: bytes {begin} to {begin + size} are not what the unfinished build wrote; "
                    "start over with --restart"
                )
            begin += size
