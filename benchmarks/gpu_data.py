"""A dataset to train benchmarks on, from text that every machine with Python has: the sources of Python's packages.

In: an empty folder. Out: its tokenizer.json (byte-level BPE of 16,000 tokens) and the indexed dataset `corpus`, made as
a user would make them. Nothing is downloaded. Done already where corpus.idx is there.
"""

import argparse
import json
import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

VOCABULARY = 16_000
TRAINED_ON_BYTES = 8_000_000


def main() -> int:
    """Make the dataset."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path)
    made.add_argument("--most-bytes", type=int, default=128_000_000, help="of text")
    options = made.parse_args()
    started = time.perf_counter()
    make_data(options.folder, options.most_bytes)
    print(f"{options.folder}/corpus: ready after {time.perf_counter() - started:.1f} s")
    return 0


def make_data(folder: Path, most_bytes: int) -> None:
    """Text, tokenizer and dataset in `folder`."""
    if (folder / "corpus.idx").exists():
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from megagpt.data.builder import build_dataset
    from megagpt.tokenizer import load_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as lines:
        for text in source_texts(most_bytes):
            lines.write(json.dumps({"text": text}) + "\n")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(source_texts(min(TRAINED_ON_BYTES, most_bytes)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    workers = len(os.sched_getaffinity(0))
    build_dataset(
        [str(folder / "corpus.jsonl")], folder / "corpus", load_tokenizer(folder / "tokenizer.json"), workers=workers
    )
    (folder / "corpus.jsonl").unlink()


def source_texts(most_bytes: int) -> Iterator[str]:
    """Texts of Python files, the standard library's first, until there are so many bytes."""
    left = most_bytes
    for kind in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(kind)).rglob("*.py")):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeError):
                continue
            if left <= 0:
                return
            if text:
                left -= len(text)
                yield text


if __name__ == "__main__":
    sys.exit(main())
