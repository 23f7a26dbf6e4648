"""Builds with small chunks and shards, for tests of builds that are stopped."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from megagpt.data import shard_writer
from megagpt.data.builder import BuildReport, build_dataset
from megagpt.data.indexed import IndexedDataset
from megagpt.data.journal import Committed
from megagpt.data.sources import Sizes
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import toy_texts

SIZES = Sizes(chunk_bytes=500, long_line_bytes=2000)
BAD = b"oops\n"


def lines(count: int, seed: int) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in toy_texts(count, seed))


class Builds:
    """Builds in a folder with small chunks and shards; `notes` is what the last one said."""

    def __init__(self, folder: Path, tokenizer: SentencePieceTokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.notes: list[str] = []
        self.a, self.b = folder / "a.jsonl", folder / "b.jsonl"
        self.a.write_bytes(lines(12, 1))
        self.b.write_bytes(lines(20, 2) + BAD + lines(20, 3))

    def build(self, *inputs: Path | str, output: str = "d", **options: object) -> BuildReport:
        self.notes = []
        options = {"tokenizer": self.tokenizer, "workers": 2, "on_note": self.notes.append, **options}
        return build_dataset(
            [str(path) for path in inputs or (self.a, self.b)],
            self.folder / output,
            sizes=SIZES,
            shard_bytes=2500,
            **options,  # type: ignore[arg-type]
        )

    def stop(self, **options: object) -> None:
        """A build that stops at the bad line of b, several shards later than a's end."""
        with pytest.raises(DataError, match=r"b.jsonl:21: the line is not JSON.*\d+ documents in \d+ shards are kept"):
            self.build(**options)
        assert self.partial("bin").exists()

    def repair(self, new: bytes = b'{"text": "repaired"}\n') -> None:
        self.b.write_bytes(self.b.read_bytes().replace(BAD, new))

    def partial(self, kind: str) -> Path:
        return self.folder / f"d.{kind}.partial"

    def expect_same_as_fresh(self, *inputs: Path | str, **options: object) -> None:
        """The dataset is the bytes of one that was built without a stop, and nothing else is left."""
        self.build(*inputs, output="fresh", **options)
        for suffix in (".bin", ".idx", ".json"):
            found = (self.folder / f"d{suffix}").read_bytes()
            assert found == (self.folder / f"fresh{suffix}").read_bytes(), suffix
        left = [name for name in os.listdir(self.folder) if "partial" in name or "journal" in name]
        assert left == []
        IndexedDataset(self.folder / "d")


def stop_after(patch: pytest.MonkeyPatch, shards: int) -> None:
    """Interrupt a build once it has committed so many shards."""
    recorder = shard_writer._Recorder
    real, done = recorder._record, []

    def record(self: shard_writer._Recorder, waiting: list[Committed]) -> None:
        for shard in waiting:
            if len(done) == shards:
                raise KeyboardInterrupt
            done.append(shard)
            real(self, [shard])

    patch.setattr(recorder, "_record", record)


def touch(path: Path, content: bytes) -> None:
    """Change a file in place, with another time of change whatever the clock's resolution."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 10_000_000, before + 10_000_000))


def other_tokenizer(builds: Builds, **change: object) -> SimpleNamespace:
    names = ("kind", "path", "vocab_size", "eod_id", "fingerprint", "encode", "decode", "encode_batch")
    return SimpleNamespace(**{**{name: getattr(builds.tokenizer, name) for name in names}, **change})
