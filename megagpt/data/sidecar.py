"""PREFIX.json beside a dataset: which tokenizer made it, from what, how much, hashes of its parts. Knows only JSON.

Nothing in it depends on time, machine, threads or engine: the same inputs give the same bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.errors import DataError

FORMAT_VERSION = 2
_OLDEST_VERSION = 1


@dataclass(frozen=True)
class Source:
    """An input file and what came from it; `size_bytes` as stored, None for standard input.

    `text_bytes` is UTF-8; `num_tokens` includes the end-of-document ids. Counts are 0 in format version 1.
    """

    path: str
    size_bytes: int | None
    num_documents: int
    num_tokens: int
    text_bytes: int
    num_characters: int


@dataclass(frozen=True)
class Shard:
    """A run of input that was committed as one; shards follow one another in .bin without gaps.

    It begins at `first_position` of source number `first_source` and ends before `last_position` of `last_source`. A
    position is a byte of the (decompressed) content, a row of parquet or a dataset, or 0 to 1 for a plain text file.
    `hash` is the xxh3_128 (hex) of its bytes in .bin, `input_hash` that of the input it was made from.
    """

    first_source: int
    first_position: int
    last_source: int
    last_position: int
    num_documents: int
    num_tokens: int
    text_bytes: int
    input_hash: str
    hash: str


@dataclass(frozen=True)
class Sidecar:
    """What the .idx cannot say. `text_bytes` is UTF-8; tokens include the end-of-document ids.

    Read from format version 1, `num_characters` and the counts of `sources` are 0 and `shards` is empty. A task whose
    share of the input is empty writes a sidecar with `num_documents` 0 and `max_token_id` -1, without .bin and .idx.
    """

    tokenizer_kind: str
    fingerprint: str
    vocab_size: int
    eod_id: int
    max_token_id: int
    num_documents: int
    num_tokens: int
    text_bytes: int
    num_characters: int
    sources: tuple[Source, ...]
    skipped: Mapping[str, int]  # reason -> documents left out
    shards: tuple[Shard, ...]
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The file's content."""
        text = json.dumps(self, default=vars, ensure_ascii=False, indent=2) + "\n"
        return text.encode("utf-8", "backslashreplace").decode("utf-8")  # file names that are not UTF-8: as \udcxx


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar in `path`; None where the file does not exist. Raises DataError where it is damaged."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise _damaged(path, str(error)) from error
    try:
        values: dict[str, Any] = json.loads(content)
        version = values["format_version"]
        if not isinstance(version, int) or not _OLDEST_VERSION <= version <= FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}; this program reads {_OLDEST_VERSION} to {FORMAT_VERSION}: "
                "rebuild the dataset"
            )
        return _parse(values if version == FORMAT_VERSION else _from_version_1(values))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _parse(values: dict[str, Any]) -> Sidecar:
    parts = {
        "sources": tuple(Source(**source) for source in values["sources"]),
        "shards": tuple(Shard(**shard) for shard in values["shards"]),
    }
    return Sidecar(**{**values, **parts})


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    uncounted = {"num_documents": 0, "num_tokens": 0, "text_bytes": 0, "num_characters": 0}
    sources = [{**source, **uncounted} for source in values["sources"]]
    return {**values, "num_characters": 0, "sources": sources, "shards": []}


def _damaged(path: Path, detail: str) -> DataError:
    return DataError(
        f"{path} is damaged ({detail}); copy it again or rebuild the dataset (without the file the dataset's tokenizer "
        "is unknown)"
    )
