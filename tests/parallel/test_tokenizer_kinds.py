"""A run with a WordPiece or Jieba-BPE tokenizer: dataset, training, checkpoint, generation, export."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from megagpt.checkpoint.manifest import Manifest
from megagpt.checkpoint.read import find_checkpoint
from megagpt.cli import main
from megagpt.data.builder import build_dataset
from megagpt.tokenizer import load_tokenizer
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_corpus, run_arguments, train_rank


def write_vocabulary(folder: Path) -> str:
    text = (folder / "corpus.jsonl").read_text(encoding="utf-8")
    pieces = sorted(
        {character for character in text if "\u4e00" <= character <= "\u9fff" or character in "0123456789。"}
    )
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lines = [*symbols, *pieces, *(f"##{digit}" for digit in range(10))]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"wordpiece-cased:{folder / 'vocab.txt'}"


def write_jieba_bpe(folder: Path) -> str:
    pytest.importorskip("jieba")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<sep>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(folder / "corpus.jsonl")], trainer)
    tokenizer.add_tokens(["\n"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return f"jieba-bpe:{folder / 'tokenizer.json'}"


def trained(folder: Path, tokenizer: str) -> Path:
    """The checkpoint of a short run."""
    build_dataset([str(folder / "corpus.jsonl")], folder / "corpus", load_tokenizer(tokenizer))
    run_ranks(1, train_rank, run_arguments(folder, "--train.steps=2", f"--tokenizer.path={tokenizer}"))
    return find_checkpoint(folder / "run")


@pytest.mark.parametrize(
    ("write", "file", "kind"),
    [(write_vocabulary, "vocab.txt", "wordpiece-cased"), (write_jieba_bpe, "tokenizer.json", "jieba-bpe")],
    ids=["wordpiece", "jieba-bpe"],
)
def test_a_checkpoint_keeps_the_tokenizer_and_its_kind(
    tmp_path: Path, write: Callable[[Path], str], file: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus(tmp_path)
    tokenizer = write(tmp_path)
    folder = trained(tmp_path, tokenizer)
    manifest = Manifest.from_json((folder / "manifest.json").read_text(encoding="utf-8"), folder)
    assert (manifest.tokenizer_file, manifest.tokenizer_kind) == (file, kind)
    assert load_tokenizer(folder).fingerprint == load_tokenizer(tokenizer).fingerprint, "the folder is a tokenizer too"

    assert main(["plan", str(tmp_path / "run" / "config.toml")]) == 0
    assert main(["data", "show", str(tmp_path / "run"), "--step", "1"]) == 0
    assert "回" in capsys.readouterr().out
    assert main(["generate", str(folder), "--prompt", "第1回", "--max-new-tokens", "5", "--greedy"]) == 0
    assert capsys.readouterr().out.startswith("第1回")
    assert main(["checkpoint", "inspect", str(folder)]) == 0
    assert file in capsys.readouterr().out


def test_a_wordpiece_model_is_exported_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    make_corpus(tmp_path)
    folder = trained(tmp_path, write_vocabulary(tmp_path))
    assert main(["export", str(folder), "--format", "hf", "--output", str(tmp_path / "hf")]) == 0
    assert "token ids: identical for 3,000 texts" in capsys.readouterr().out


def test_a_jieba_bpe_model_cannot_be_exported_to_hugging_face(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus(tmp_path)
    folder = trained(tmp_path, write_jieba_bpe(tmp_path))
    assert main(["export", str(folder), "--format", "hf", "--output", str(tmp_path / "hf")]) == 2
    assert (
        "is a Jieba-BPE tokenizer, which this format cannot express: transformers does not" in capsys.readouterr().err
    )
    assert not (tmp_path / "hf").exists()
