"""Datasets with hashes for tests, written by the format's definition: numpy and struct, none of the code under test."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from megagpt.data.sidecar import Shard, Sidecar, Source

EOD = 1
VOCAB = 1000
FINGERPRINT = "f" * 64


def random_documents(seed: int, num_documents: int, longest: int = 30) -> list[list[int]]:
    """Documents of ids 2 to VOCAB - 1, each with EOD at its end."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(2, VOCAB, rng.integers(0, longest)).tolist(), EOD] for _ in range(num_documents)]


def write_files(prefix: Path, documents: Sequence[Sequence[int]], dtype: str = "<u2", split_at: int = 0) -> None:
    """PREFIX.bin and .idx; with `split_at` a document is sequences of at most so many tokens, else one."""
    code = {"<u2": 8, "<i4": 4, "<i8": 5}[dtype]
    sequences = [[d[i : i + split_at] for i in range(0, len(d), split_at)] if split_at else [d] for d in documents]
    lengths = [len(part) for parts in sequences for part in parts]
    itemsize = np.dtype(dtype).itemsize
    pointers = np.concatenate(([0], np.cumsum(lengths)[:-1])) * itemsize
    bounds = np.cumsum([0, *(len(parts) for parts in sequences)])
    Path(f"{prefix}.bin").write_bytes(b"".join(np.array(document, dtype=dtype).tobytes() for document in documents))
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(lengths), len(bounds))
        + np.array(lengths, dtype="<i4").tobytes()
        + pointers.astype("<i8").tobytes()
        + bounds.astype("<i8").tobytes()
    )


def sidecar_of(
    documents: Sequence[Sequence[int]],
    shard_sizes: Sequence[int],
    sources: Sequence[tuple[str, int]],
    dtype: str = "<u2",
    fingerprint: str = FINGERPRINT,
    eod_id: int = EOD,
    skipped: dict[str, int] | None = None,
) -> Sidecar:
    """`shard_sizes`: documents of each shard; `sources`: path and documents of each, 10 bytes of text a document."""
    made, first = [], 0
    for path, count in sources:
        tokens = sum(map(len, documents[first : first + count]))
        made.append(Source(path, 1000, count, tokens, 10 * count, 4 * count))
        first += count
    assert first == len(documents), (first, len(documents))
    ends = np.cumsum([count for _, count in sources])
    shards, first = [], 0
    for size in shard_sizes:
        chosen = documents[first : first + size]
        data = b"".join(np.array(document, dtype=dtype).tobytes() for document in chosen)
        first_source, last_source = np.searchsorted(ends, [first, first + size - 1], side="right").tolist()
        shards.append(
            Shard(
                first_source=first_source,
                first_position=first,
                last_source=last_source,
                last_position=first + size,
                num_documents=size,
                num_tokens=sum(map(len, chosen)),
                text_bytes=10 * size,
                input_hash="0" * 32,
                hash=xxhash.xxh3_128_hexdigest(data),
            )
        )
        first += size
    return Sidecar(
        tokenizer_kind="sentencepiece",
        fingerprint=fingerprint,
        vocab_size=VOCAB,
        eod_id=eod_id,
        max_token_id=max((max(document) for document in documents if document), default=-1),
        num_documents=len(documents),
        num_tokens=sum(map(len, documents)),
        text_bytes=10 * len(documents),
        num_characters=4 * len(documents),
        sources=tuple(made),
        skipped=skipped or {},
        shards=tuple(shards),
    )


def write_dataset(
    prefix: Path,
    documents: Sequence[Sequence[int]],
    shard_sizes: Sequence[int] | None = None,
    sources: Sequence[tuple[str, int]] | None = None,
    dtype: str = "<u2",
    split_at: int = 0,
) -> Sidecar:
    """All three files; one shard and one source unless said otherwise."""
    write_files(prefix, documents, dtype, split_at)
    sizes = [len(documents)] if shard_sizes is None else shard_sizes
    sidecar = sidecar_of(documents, sizes, sources or [("corpus.jsonl", len(documents))], dtype)
    write_sidecar(prefix, sidecar)
    return sidecar


def write_sidecar(prefix: Path, sidecar: Sidecar) -> None:
    """PREFIX.json."""
    Path(f"{prefix}.json").write_text(sidecar.to_json(), encoding="utf-8")


def file_bytes(prefix: Path) -> tuple[bytes, bytes]:
    """.bin and .idx."""
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()
