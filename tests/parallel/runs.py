"""A small real run: tokenizer, dataset and configuration in a folder, and one rank of its training."""

import io
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from megagpt.config_file import load_config
from megagpt.data.builder import build_dataset
from megagpt.tokenizer import load_tokenizer
from megagpt.tokenizer.train import TokenizerSettings, train_sentencepiece
from megagpt.training.prepare import PreparedRun, prepare_run
from megagpt.training.profile_options import ProfiledSteps
from megagpt.training.run_session import RunSession
from megagpt.training.stop import StopSignals

_WORDS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈"
_POEMS = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"


def make_corpus(folder: Path, num_documents: int = 120) -> None:
    """corpus.jsonl: made-up sentences whose characters follow one another, so that there is something to learn."""
    lines = []
    for number in range(num_documents):
        start, stride = number % len(_WORDS), 1 + number % 3
        text = "".join(_WORDS[(start + stride * place) % len(_WORDS)] for place in range(40 + number % 17))
        lines.append(json.dumps({"text": f"第{number}回\n{text}。"}, ensure_ascii=False))
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_data(folder: Path) -> None:
    """Corpus, tokenizer.model and the dataset `corpus` in a folder."""
    make_corpus(folder)
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    train_sentencepiece(texts, folder / "tokenizer.model", TokenizerSettings(vocab_size=400))
    build_dataset([str(folder / "corpus.jsonl")], folder / "corpus", load_tokenizer(folder / "tokenizer.model"))


def make_poems(folder: Path) -> None:
    """The dataset `poems` beside those of `make_data`, of the same tokenizer."""
    lines = [{"text": "".join(_POEMS[(n + k * 3) % len(_POEMS)] for k in range(30 + n % 7))} for n in range(60)]
    (folder / "poems.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    build_dataset([str(folder / "poems.jsonl")], folder / "poems", load_tokenizer(folder / "tokenizer.model"))


def run_arguments(folder: Path, *extra: str) -> list[str]:
    """Arguments of a small run on the data in a folder."""
    return [
        *("--model.num_layers=2", "--model.num_heads=2", "--model.hidden_size=32", "--model.sequence_length=32"),
        *(f"--tokenizer.path={folder}/tokenizer.model", f"--data.path={folder}/corpus", "--data.split=0.9,0.1,0.0"),
        *(f"--run.folder={folder}/run", "--train.steps=6", "--train.batch_tokens=256", "--train.micro_batch_size=2"),
        *("--train.precision=fp32", "--train.lr=3e-3", "--train.warmup_tokens=512", "--train.decay_tokens=4000"),
        *("--evaluation.interval_steps=3", "--evaluation.max_batches=2", "--checkpoint.interval_steps=2"),
        *("--log.tensorboard=false",),
        *extra,
    ]


def prepare_small(arguments: list[str], allow_data_change: bool = False) -> PreparedRun:
    """The prepared run of arguments, for as many ranks as the environment announces."""
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return prepare_run(load_config(None, arguments), num_ranks, allow_data_change=allow_data_change)


def train_rank(arguments: list[str], allow_data_change: bool = False) -> None:
    """Train one rank in this process, as `megagpt train` does."""
    run_prepared(prepare_small(arguments, allow_data_change), Console(quiet=True))


def run_prepared(
    prepared: PreparedRun,
    console: Console,
    trace: bool = False,
    signals: StopSignals | None = None,
    profiled: ProfiledSteps | None = None,
) -> None:
    """One rank's session of a prepared run, with its record in the run folder."""
    from megagpt.training.session import run_training

    rank = int(os.environ.get("RANK", "0"))
    with signals or StopSignals() as stop, RunSession(prepared.folder, console, rank) as session:
        session.start(prepared)
        run_training(prepared, console, session, stop, trace, profiled)


def train_rank_aloud(arguments: list[str]) -> str:
    """Train one rank as `train_rank` does; returns what it said, nothing on other ranks than 0."""
    from megagpt.training.session import describe_start

    prepared = prepare_small(arguments)
    console = Console(file=io.StringIO(), width=400, quiet=os.environ.get("RANK", "0") != "0")
    describe_start(prepared, console)
    run_prepared(prepared, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, without the fields that are times."""
    timed = {"seconds_per_step", "tokens_per_second", "model_tflops", "mfu", "slowest_rank", "slowest_ratio"}
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def same_weights(left: Path, right: Path) -> bool:
    """Whether the runs in two folders have saved the same parameters with the same values, bit for bit."""
    import torch

    from megagpt.checkpoint.read import read_model

    ours, theirs = (read_model(folder / "run").parameters for folder in (left, right))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def flip_bit(path: Path, place: int | None = None) -> None:
    """Change one bit of the byte at `place` of a file (negative: from its end; None: in its middle)."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)
