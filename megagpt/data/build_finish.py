"""The end of a build. In: committed shards and the lengths file. Out: PREFIX.bin, .idx and .json under their names.

A step that was done before a crash is found done: running the end again has the same result.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megagpt.data.indexed_writer import write_document_index
from megagpt.data.journal import Committed, Finish, Plan
from megagpt.data.shard_writer import BuildFiles
from megagpt.data.sidecar import Sidecar, Source
from megagpt.durable import flush_folder
from megagpt.errors import DataError


def write_index_of(path: Path, dtype: np.dtype, lengths: Path, num_documents: int) -> int:
    """Write the .idx of documents with the int32 `lengths` in a file; its size. Raises OSError for a full disk."""
    with open(path, "wb") as stream, open(lengths, "rb") as source:
        write_document_index(stream, dtype, source.fileno(), num_documents)
        return _to_disk(stream)


def write_sidecar(path: Path, sidecar: Sidecar) -> int:
    """Write the .json; its size. Raises OSError for a full disk."""
    with open(path, "wb") as stream:
        stream.write(sidecar.to_json().encode("utf-8"))
        return _to_disk(stream)


def _to_disk(stream: BinaryIO) -> int:
    stream.flush()
    os.fsync(stream.fileno())
    return stream.tell()


def sidecar_of(plan: Plan, committed: Sequence[Committed]) -> Sidecar:
    """What the committed shards of a whole build add up to."""
    sizes = {state.path: state.size_bytes for state in plan.inputs}
    totals = np.zeros((len(plan.shares), 4), dtype=np.int64)  # of each source
    skipped: Counter[str] = Counter()
    for record in committed:
        skipped.update(record.skipped)
        for part in record.parts:
            totals[part.source] += (part.num_documents, part.num_tokens, part.text_bytes, part.num_characters)
    num_documents, num_tokens, text_bytes, num_characters = totals.sum(axis=0).tolist()
    return Sidecar(
        tokenizer_kind=plan.tokenizer_kind,
        fingerprint=plan.fingerprint,
        vocab_size=plan.vocab_size,
        eod_id=plan.eod_id,
        max_token_id=max((record.max_token_id for record in committed), default=-1),
        num_documents=num_documents,
        num_tokens=num_tokens,
        text_bytes=text_bytes,
        num_characters=num_characters,
        sources=tuple(
            Source(share.path, sizes[share.path], *counts)
            for share, counts in zip(plan.shares, totals.tolist(), strict=True)
        ),
        skipped=dict(skipped),
        shards=tuple(record.shard for record in committed),
    )


def publish(files: BuildFiles, finish: Finish) -> None:
    """Give the files their names, the .idx last; an old dataset's files go first, so no mixture is ever complete.

    May have been begun before. Raises DataError where a file that was whole is gone.
    """
    partials = (files.bin, files.json, files.idx)
    bin_path, idx_path, json_path = files.targets
    sizes = (finish.bin_bytes, finish.json_bytes, finish.idx_bytes)
    begun = not (files.json if finish.bin_bytes is None else files.bin).exists()
    if not begun:
        idx_path.unlink(missing_ok=True)
        json_path.unlink(missing_ok=True)
    for partial, target, size in zip(partials, (bin_path, json_path, idx_path), sizes, strict=True):
        if size is None:
            partial.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            continue
        if partial.exists():
            os.replace(partial, target)
        found = target.stat().st_size if target.exists() else None
        if found != size:
            state = "is gone" if found is None else f"has {found} bytes, not {size}"
            raise DataError(f"{target}, which an unfinished build wrote, {state}; start over with --restart")
    files.lengths.unlink(missing_ok=True)
    flush_folder(bin_path.parent)


def discard(files: BuildFiles) -> None:
    """Remove what a build has written, but not its journal."""
    for path in (files.bin, files.idx, files.json, files.lengths):
        path.unlink(missing_ok=True)
