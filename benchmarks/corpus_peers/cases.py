"""What is run in one round, in order. In: places, contenders, an input. Out: cases: a name and a way to make its job.

Ours comes first, as what it writes is what others are compared with and what the write limit writes.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from corpus_peers.contenders import HERE, OURS, ROOT, Contender, Corpus, Job, Places, ours_on

BUILDER, LIMIT, FORMAT, TOKENIZER, START = "builder", "limit", "format", "tokenizer", "start-up"


class Case(NamedTuple):
    """One row of a table. `against`: the row of the same input and workers that it is compared with, if any."""

    kind: str
    name: str
    workers: int
    corpus: Corpus
    job: Callable[[Path], Job]
    against: str | None


def builder_cases(
    places: Places,
    contenders: Sequence[Contender],
    corpus: Corpus,
    workers: Sequence[int],
    peer_workers: Sequence[int],
) -> Iterator[Case]:
    """Ours at every number of workers, its peers at each of `peer_workers`; ours first."""
    ordered = sorted(contenders, key=lambda contender: contender.name != OURS)
    for count in workers:
        for contender in ordered:
            if contender.name != OURS and count not in peer_workers:
                continue
            yield Case(BUILDER, contender.name, count, corpus, _job(places, contender, corpus, count), OURS)


def start_cases(places: Places, contenders: Sequence[Contender], corpus: Corpus, workers: int) -> Iterator[Case]:
    """Every contender on one document: interpreter, imports, workers and tokenizer, and next to nothing to do."""
    for contender in contenders:
        yield Case(START, contender.name, workers, corpus, _job(places, contender, corpus, workers), None)
    nothing = (sys.executable, "-c", "pass")
    yield Case(START, "python -c pass", 1, corpus, lambda output: Job(nothing, {}, output, ()), None)


def limit_cases(
    places: Places, corpus: Corpus, ours_bytes: Callable[[], int], workers: Sequence[int]
) -> Iterator[Case]:
    """Parts of the work alone. `ours_bytes`: size of our output. With two workers also two half builds at once."""
    path = str(corpus.path)
    yield Case(LIMIT, "read the file", 1, corpus, lambda output: _limit(output, "read", path), None)
    yield Case(LIMIT, "parse JSON with orjson", 1, corpus, lambda output: _limit(output, "json_orjson", path), None)

    if any((ROOT / "megagpt" / "native").glob("_encoder.*.so")):
        for count in workers:
            yield Case(LIMIT, "parse JSON with our native core", count, corpus, _scan(path, count), None)

    def write(output: Path) -> Job:
        return _limit(output, "write", str(output / "block"), str(ours_bytes()))

    yield Case(LIMIT, "write as many bytes as ours, to the disk", 1, corpus, write, None)
    if 2 in workers:
        for count in (1, 2):
            yield Case(LIMIT, ARITHMETIC, count, corpus, partial(_hashes, count), None)
        yield Case(LIMIT, PAIR, 2, corpus, lambda output: _pair(places, corpus, output), None)


ARITHMETIC = "hash a block in the core's cache, again and again, in each of as many processes"


def _hashes(count: int, output: Path) -> Job:
    """The same work in each of one or two processes at once: with a core for each, two take as long as one."""
    job = _limit(output, "hash_block")
    if count == 1:
        return job
    command = shlex.join(job.command)
    return Job(("sh", "-c", f"{command} & {command} && wait $!"), job.environment, output, ())


PAIR = "two separate builds of half the file each, one worker each, at once"


def _pair(places: Places, corpus: Corpus, output: Path) -> Job:
    """What two cores of this machine give two programs that share nothing: the ceiling of any scaling."""
    halves = [corpus.pieces[2] / f"{half}.jsonl" for half in (0, 1)]
    folders = [output / str(half) for half in (0, 1)]
    for folder in folders:
        os.makedirs(folder)
    jobs = [ours_on(places, half, places.tokenizer, 1, folder) for half, folder in zip(halves, folders, strict=True)]
    first, second = (shlex.join(job.command) for job in jobs)
    return Job(("sh", "-c", f"{first} & {second} && wait $!"), jobs[0].environment, output, ())


def format_cases(places: Places, corpus: Corpus, files: Mapping[str, Path], workers: int) -> Iterator[Case]:
    """Ours on each compressed copy, after its decompression alone."""
    alone = {"gz": "gunzip", "zst": "unzstd", "parquet": "parquet"}
    if find_spec("isal"):
        yield Case(FORMAT, "gz: decompression alone, by isal", 1, corpus, _on("gunzip_isal", files["gz"]), None)
    for ending, path in files.items():
        yield Case(FORMAT, alone_name(ending), 1, corpus, _on(alone[ending], path), None)
        yield Case(FORMAT, f"{OURS} on {ending}", workers, corpus, _ours(places, path, workers), alone_name(ending))


def alone_name(ending: str) -> str:
    """The row of decompressing alone."""
    return f"{ending}: decompression alone"


def tokenizer_cases(places: Places, corpus: Corpus, wordpiece: Path, jieba: Path, workers: int) -> Iterator[Case]:
    """Ours with tokenizers that work through their libraries, after the library alone."""
    path, vocabulary = str(corpus.path), str(wordpiece)
    alone = "tokenizers' WordPiece alone"
    yield Case(TOKENIZER, alone, workers, corpus, lambda output: _limit(output, "wordpiece", vocabulary, path), None)
    yield Case(TOKENIZER, f"{OURS}, WordPiece", workers, corpus, _ours(places, corpus.path, workers, wordpiece), alone)
    alone = "jieba's words alone, one thread"
    yield Case(TOKENIZER, alone, 1, corpus, lambda output: _limit(output, "jieba_words", path), None)
    yield Case(TOKENIZER, f"{OURS}, Jieba-BPE", workers, corpus, _ours(places, corpus.path, workers, jieba), alone)


def _job(places: Places, contender: Contender, corpus: Corpus, workers: int) -> Callable[[Path], Job]:
    return lambda output: contender.job(places, corpus, workers, output)


def _ours(places: Places, path: Path, workers: int, tokenizer: Path | None = None) -> Callable[[Path], Job]:
    return lambda output: ours_on(places, path, tokenizer or places.tokenizer, workers, output)


def _on(part: str, path: Path) -> Callable[[Path], Job]:
    return lambda output: _limit(output, part, str(path))


def _scan(path: str, workers: int) -> Callable[[Path], Job]:
    return lambda output: _limit(output, "json_native", path, str(workers))


def _limit(output: Path, part: str, *arguments: str) -> Job:
    return Job((sys.executable, str(HERE / "limits.py"), part, *arguments), {"PYTHONPATH": str(ROOT)}, output, ())
