"""How each builder is started: ours and its peers. In: where things lie, an input, a number of workers. Out: a command.

A peer runs as its authors ship it, from its own checkout with its own Python; nothing of it is kept here.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
OURS = "megagpt"


@dataclass(frozen=True)
class Places:
    """Where things lie. `huggingface`: the tokenizer converted for peers that read no SentencePiece model."""

    work: Path
    tokenizer: Path
    huggingface: Path
    end_symbol: str
    peers: Path | None
    peers_python: str


class Corpus(NamedTuple):
    """An input. `pieces[n]`: a folder with the same text cut at line ends into n files, for who reads whole files."""

    name: str
    path: Path
    num_bytes: int
    pieces: Mapping[int, Path]


class Job(NamedTuple):
    """A command, its environment beside the caller's, its folder, and its (.bin, .idx) in order; none for a limit."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    outputs: tuple[tuple[Path, Path], ...]


class Contender(NamedTuple):
    """`what`: one line for the reader. `missing`: why it cannot run here, None where it can."""

    name: str
    what: str
    missing: Callable[[Places], str | None]
    job: Callable[[Places, Corpus, int, Path], Job]  # places, corpus, workers, an empty folder for the output


def ours(places: Places, corpus: Corpus, workers: int, output: Path) -> Job:
    """`megagpt data build` of this checkout."""
    return ours_on(places, corpus.path, places.tokenizer, workers, output)


def ours_on(places: Places, path: Path, tokenizer: Path, workers: int, output: Path) -> Job:
    """Our builder on any file with any tokenizer."""
    prefix = output / "ours"
    arguments = (str(path), "--tokenizer", str(tokenizer), "--output", str(prefix), "--workers", str(workers))
    return Job(
        (sys.executable, str(ROOT / "data_tools" / "build_dataset.py"), *arguments),
        {"PYTHONPATH": str(ROOT), "RAYON_NUM_THREADS": str(workers)},
        output,
        (_dataset(prefix),),
    )


def _loop(places: Places, corpus: Corpus, workers: int, output: Path) -> Job:
    prefix = output / "loop"
    script = str(HERE / "sentencepiece_loop.py")
    arguments = (str(corpus.path), str(places.tokenizer), str(prefix), str(workers))
    return Job((sys.executable, script, *arguments), {}, output, (_dataset(prefix),))


def _megatron(places: Places, corpus: Corpus, workers: int, output: Path) -> Job:
    checkout = _checkout(places, "megatron-lm")
    files = ("--input", str(corpus.path), "--output-prefix", str(output / "megatron"))
    arguments = ("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(places.tokenizer))
    script = (places.peers_python, str(checkout / "tools" / "preprocess_data.py"))
    command = (*script, *files, *arguments, "--append-eod", "--workers", str(workers))
    return Job(command, {"PYTHONPATH": str(checkout)}, output, (_dataset(output / "megatron_text_document"),))


def _megatron_fast(places: Places, corpus: Corpus, workers: int, output: Path) -> Job:
    checkout = _checkout(places, "megatron-lm")
    files = ("--input", str(corpus.path), "--output-prefix", str(output / "fast"))
    arguments = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(places.huggingface))
    script = (places.peers_python, str(checkout / "tools" / "preprocess_data_fast.py"))
    command = (*script, *files, *arguments, "--use-gigatoken", "--append-eod")
    environment = {"PYTHONPATH": str(checkout), "RAYON_NUM_THREADS": str(workers)}  # it has no --workers
    return Job(command, environment, output, (_dataset(output / "fast_text_document"),))


def _neox(places: Places, corpus: Corpus, workers: int, output: Path) -> Job:
    checkout = _checkout(places, "gpt-neox")
    script = str(checkout / "tools" / "datasets" / "preprocess_data.py")
    arguments = ("--tokenizer-type", "SPMTokenizer", "--vocab-file", str(places.tokenizer), "--append-eod")
    command = (places.peers_python, script, "--input", str(corpus.path), "--output-prefix", str(output / "neox"))
    environment = {"PYTHONPATH": str(checkout)}
    outputs = (_dataset(output / "neox_text_document"),)
    return Job((*command, *arguments, "--workers", str(workers)), environment, output, outputs)


def _datatrove(places: Places, corpus: Corpus, workers: int, output: Path) -> Job:
    script = str(HERE / "datatrove_tokens.py")
    tokenizer = str(places.huggingface / "tokenizer.json")
    arguments = (str(corpus.pieces[workers]), tokenizer, places.end_symbol, str(output / "datatrove"), str(workers))
    outputs = tuple(_dataset(output / "datatrove" / f"{task:05d}_tokens") for task in range(workers))
    return Job((sys.executable, script, *arguments), {"RAYON_NUM_THREADS": "1"}, output, outputs)


def _gigatoken(places: Places, corpus: Corpus, workers: int, output: Path) -> Job:
    command = (places.peers_python, str(HERE / "gigatoken_encode.py"), str(corpus.path), str(places.huggingface))
    return Job(command, {"RAYON_NUM_THREADS": str(workers)}, output, ())


def _dataset(prefix: Path) -> tuple[Path, Path]:
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx")


def _checkout(places: Places, name: str) -> Path:
    assert places.peers is not None, name
    return places.peers / name


def _has_script(name: str, script: str, *modules: str) -> Callable[[Places], str | None]:
    def missing(places: Places) -> str | None:
        if places.peers is None:
            return "--peers-dir was not given"
        if not (places.peers / name / script).is_file():
            return f"--peers-dir has no {name}/{script}"
        return _missing_modules(places.peers_python, *modules)

    return missing


def _missing_modules(python: str, *modules: str) -> str | None:
    code = (
        "import sys\nfrom importlib.util import find_spec\n"
        "print(' '.join(name for name in sys.argv[1:] if find_spec(name) is None))"
    )
    try:
        run = subprocess.run([python, "-c", code, *modules], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"its Python cannot be started ({error})"
    return f"its Python has no {run.stdout.strip()}" if run.stdout.strip() else None


CONTENDERS: Mapping[str, Contender] = MappingProxyType(
    {
        contender.name: contender
        for contender in (
            Contender(OURS, "megagpt data build", lambda places: None, ours),
            Contender(
                "megatron",
                "Megatron-LM tools/preprocess_data.py, SentencePieceTokenizer",
                _has_script("megatron-lm", "tools/preprocess_data.py", "torch", "sentencepiece"),
                _megatron,
            ),
            Contender(
                "megatron-fast",
                "Megatron-LM tools/preprocess_data_fast.py, HuggingFaceTokenizer by gigatoken",
                _has_script("megatron-lm", "tools/preprocess_data_fast.py", "torch", "gigatoken", "awkward"),
                _megatron_fast,
            ),
            Contender(
                "neox",
                "GPT-NeoX tools/datasets/preprocess_data.py, SPMTokenizer",
                _has_script("gpt-neox", "tools/datasets/preprocess_data.py", "torch", "lm_dataformat", "ftfy"),
                _neox,
            ),
            Contender(
                "datatrove",
                "datatrove JsonlReader and MegatronDocumentTokenizer, one file a worker",
                lambda places: _missing_modules(sys.executable, "datatrove", "tokenizers", "orjson"),
                _datatrove,
            ),
            Contender(
                "loop",
                "orjson, sentencepiece's batch encoder, numpy: a loop of 12 lines",
                lambda places: _missing_modules(sys.executable, "orjson", "sentencepiece"),
                _loop,
            ),
            Contender(
                "gigatoken",
                "gigatoken's encode_files alone; writes nothing",
                lambda places: _missing_modules(places.peers_python, "gigatoken"),
                _gigatoken,
            ),
        )
    }
)
