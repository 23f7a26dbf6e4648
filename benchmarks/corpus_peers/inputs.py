"""The inputs of a measurement, made once in the work folder. In: one JSONL file. Out: repetitions, pieces, samples.

Imports only the standard library and holds one block of a file at a time.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from corpus_peers.contenders import HERE, Corpus

_BLOCK_BYTES = 4 << 20
FORMATS: Mapping[str, str] = {"gz": "jsonl.gz", "zst": "jsonl.zst", "parquet": "parquet"}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def size_argument(text: str) -> int:
    """Bytes from "1GB", "500MB" or a number. Raises ValueError."""
    unit = text[-2:].upper()
    return round(float(text[:-2]) * _UNITS[unit]) if unit in _UNITS else int(text)


def corpus(name: str, path: Path, work: Path, workers: Iterable[int]) -> Corpus:
    """The input `path` with its pieces for each number of workers, in `work`."""
    pieces = {count: _cut(path, work / f"{name}-in-{count}", count) for count in workers}
    return Corpus(name, path, path.stat().st_size, pieces)


def repeated(path: Path, target: Path, num_bytes: int) -> None:
    """Write whole copies of `path`, one after another: the number of them that comes nearest to `num_bytes`."""
    with open(target, "wb") as output:
        for _ in range(max(1, round(num_bytes / path.stat().st_size))):
            with open(path, "rb") as source:
                shutil.copyfileobj(source, output, _BLOCK_BYTES)


def sample(path: Path, target: Path, num_bytes: int) -> None:
    """Write every n-th line of `path`, n so that about `num_bytes` come together; num_bytes 0: the first line."""
    step = -(-path.stat().st_size // num_bytes) if num_bytes else sys.maxsize
    with open(path, "rb") as lines, open(target, "wb") as output:
        output.writelines(line for number, line in enumerate(lines) if number % step == 0)


def one_document(path: Path, target: Path) -> None:
    """Write one document, on one line, of all the texts of `path`."""
    with open(path, encoding="utf-8") as lines, open(target, "w", encoding="utf-8") as output:
        output.write('{"text": "')
        for line in lines:
            output.write(json.dumps(json.loads(line)["text"] + "\n", ensure_ascii=False)[1:-1])
        output.write('"}\n')


def compressed(source: Corpus, work: Path) -> Mapping[str, Path]:
    """The same corpus in each of FORMATS."""
    stem = work / f"{source.name}-compressed"
    subprocess.run([sys.executable, str(HERE / "compressed_copies.py"), str(source.path), str(stem)], check=True)
    return {name: Path(f"{stem}.{ending}") for name, ending in FORMATS.items()}


def converted_tokenizer(model: Path, work: Path) -> tuple[Path, str]:
    """The SentencePiece model as a Hugging Face folder, and its end-of-document symbol."""
    folder = work / "huggingface"
    script = str(HERE / "to_huggingface.py")
    run = subprocess.run([sys.executable, script, str(model), str(folder)], capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"the tokenizer {model} cannot be converted for the peers: {run.stderr.strip()}")
    return folder, run.stdout.strip()


def other_tokenizers(path: Path, work: Path) -> tuple[Path, Path]:
    """A WordPiece vocab.txt and a Jieba-BPE tokenizer.json made from the JSONL file `path`."""
    folder = work / "tokenizers"
    subprocess.run([sys.executable, str(HERE / "other_tokenizers.py"), str(path), str(folder)], check=True)
    return folder / "wordpiece" / "vocab.txt", folder / "jieba-bpe" / "tokenizer.json"


def _cut(path: Path, folder: Path, count: int) -> Path:
    folder.mkdir()
    if count == 1:
        (folder / "0.jsonl").symlink_to(path)
        return folder
    size = path.stat().st_size
    with open(path, "rb") as source:
        for piece in range(count):
            with open(folder / f"{piece}.jsonl", "wb") as output:
                _copy_until(source, output, size * (piece + 1) // count)
    return folder


def _copy_until(source: BinaryIO, output: BinaryIO, stop: int) -> None:
    """Copy up to the end of the line in which byte `stop` lies."""
    while (left := stop - source.tell()) > 0:
        if not (block := source.read(min(left, _BLOCK_BYTES))):
            return
        output.write(block)
    output.write(source.readline())


def remove_outputs(folder: Path) -> None:
    """Remove what a run wrote into `folder` (one that this benchmark made) and make it anew, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
