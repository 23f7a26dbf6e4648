"""What no builder can beat: one part of its work alone, in a process of its own.

In: the part's name and its arguments. Out: nothing but the time it takes, which the caller measures. Every part reads
or writes in blocks, so that memory does not bound it.
"""

import gzip
import io
import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

BLOCK_BYTES = 4 << 20
SCAN_BYTES, LINE_BYTES = 2 << 20, 64 << 10
HASHED_BYTES, HASHED_TIMES = 128 << 10, 800_000  # fits the second-level cache of a core; about 1 s
BATCH_DOCUMENTS = 1024


def read(path: str) -> None:
    """Read a file, in blocks into the same memory."""
    block = memoryview(bytearray(BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while file.readinto(block):
            pass


def write(path: str, num_bytes: str) -> None:
    """Write so many bytes and wait until they are on the disk."""
    block = os.urandom(BLOCK_BYTES)
    left = int(num_bytes)
    with open(path, "wb", buffering=0) as file:
        while left:
            left -= file.write(block[:left])
        os.fsync(file.fileno())


def json_orjson(path: str) -> None:
    """Parse every line with orjson, one thread."""
    import orjson

    with open(path, "rb") as lines:
        for line in lines:
            orjson.loads(line)


def json_native(path: str, threads: str) -> None:
    """Find and check the text of every line with our native core, which encodes nothing; blocks on several threads."""
    from concurrent.futures import ThreadPoolExecutor

    from megagpt.native import _encoder

    def scan(start: int) -> None:
        """The lines that start in a block; the block before ends with the line that starts in it."""
        before = min(start, 1)  # the byte before tells whether a line starts here
        block = os.pread(file, SCAN_BYTES + before, start - before)
        begin = block.find(b"\n") + 1 if before else 0
        while not block.endswith(b"\n") and (more := os.pread(file, LINE_BYTES, start - before + len(block))):
            block += more[: more.find(b"\n") + 1] if b"\n" in more else more
        _encoder.scan_lines(memoryview(block)[begin:], b"text")

    file = os.open(path, os.O_RDONLY)
    with ThreadPoolExecutor(int(threads)) as pool:
        list(pool.map(scan, range(0, os.fstat(file).st_size, SCAN_BYTES)))
    os.close(file)


def hash_block() -> None:
    """Hash the same small block again and again: arithmetic in a core's own cache, nothing from memory or the disk."""
    import xxhash

    block = bytes(range(256)) * (HASHED_BYTES // 256)
    for _ in range(HASHED_TIMES):
        xxhash.xxh3_64_intdigest(block)


def gunzip(path: str) -> None:
    """Decompress a .gz with zlib, one thread."""
    with gzip.open(path, "rb") as stream:
        _drain(stream)


def gunzip_isal(path: str) -> None:
    """Decompress a .gz with isal, one thread."""
    from isal import igzip

    with igzip.open(path, "rb") as stream:
        _drain(stream)


def unzstd(path: str) -> None:
    """Decompress a .zst, one thread."""
    import zstandard

    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_size=1 << 20) as stream:
        _drain(stream)


def parquet(path: str) -> None:
    """Decode the text column of a parquet file with Arrow, in batches; nothing becomes a Python string."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_DOCUMENTS * 8, columns=["text"]):
            assert batch.num_rows


def wordpiece(vocabulary: str, corpus: str) -> None:
    """Encode with the tokenizers library's BERT WordPiece alone (threads: RAYON_NUM_THREADS)."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)
    _in_batches(corpus, lambda texts: tokenizer._tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def jieba_words(corpus: str) -> None:
    """Cut into words with jieba alone, one thread: its part of Jieba-BPE."""
    import jieba

    def cut(texts: list[str]) -> None:
        for text in texts:
            jieba.lcut(text)

    _in_batches(corpus, cut)


def _in_batches(corpus: str, use: Callable[[list[str]], object]) -> None:
    import orjson

    batch: list[str] = []
    with open(corpus, "rb") as lines:
        for line in lines:
            batch.append(orjson.loads(line)["text"])
            if len(batch) == BATCH_DOCUMENTS:
                use(batch)
                batch = []
    use(batch)


def _drain(stream: io.BufferedIOBase) -> None:
    while stream.read(BLOCK_BYTES):
        pass


PARTS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        part.__name__: part
        for part in (
            read,
            write,
            json_orjson,
            json_native,
            hash_block,
            gunzip,
            gunzip_isal,
            unzstd,
            parquet,
            wordpiece,
            jieba_words,
        )
    }
)

if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
