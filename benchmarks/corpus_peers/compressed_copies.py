"""The same corpus as .gz, .zst and .parquet. In: JSONL and an output stem. Out: STEM.jsonl.gz, .jsonl.zst, .parquet."""

import gzip
import shutil
import sys
from collections.abc import Iterator

GZIP_LEVEL = 6  # what the gzip program uses
ZSTD_LEVEL = 3  # what the zstd program uses
ROW_GROUP_ROWS = 50_000


def main(corpus: str, stem: str) -> None:
    """Write the three copies; parquet holds the one column "text", with zstd as most published corpora."""
    import zstandard

    with open(corpus, "rb") as source, gzip.open(f"{stem}.jsonl.gz", "wb", GZIP_LEVEL) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    with open(corpus, "rb") as source, open(f"{stem}.jsonl.zst", "wb") as target:
        zstandard.ZstdCompressor(level=ZSTD_LEVEL).copy_stream(source, target)
    _parquet(corpus, f"{stem}.parquet")


def _parquet(corpus: str, path: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for texts in _row_groups(corpus):
            writer.write_table(pa.table({"text": texts}, schema), row_group_size=ROW_GROUP_ROWS)


def _row_groups(corpus: str) -> Iterator[list[str]]:
    import orjson

    texts: list[str] = []
    with open(corpus, "rb") as lines:
        for line in lines:
            texts.append(orjson.loads(line)["text"])
            if len(texts) == ROW_GROUP_ROWS:
                yield texts
                texts = []
    if texts:
        yield texts


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
