"""A small reproducible corpus and tokenizer for tests."""

import random
from pathlib import Path

from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from megagpt.tokenizer.train import TokenizerSettings, train_sentencepiece

_CHINESE = (
    "天下大势",
    "分久必合",
    "合久必分",
    "第一条",
    "中华人民共和国",
    "公民",
    "有权",
    "刘备",
    "关羽",
    "张飞",
    "曹操",
)
_WORDS = (*_CHINESE, "曹操", "the", "quick", "fox", "12", "2024")


def toy_texts(count: int = 60, seed: int = 0) -> list[str]:
    """`count` documents of 1 to 8 lines of Chinese words, English words and digits."""
    chance = random.Random(seed)

    def line() -> str:
        return "，".join(chance.choices(_WORDS, k=chance.randint(1, 12))) + "。"

    return ["\n".join(line() for _ in range(chance.randint(1, 8))) for _ in range(count)]


def train_toy(path: Path) -> SentencePieceTokenizer:
    """A tokenizer of 340 ids trained on `toy_texts`."""
    train_sentencepiece(toy_texts(), path, TokenizerSettings(vocab_size=340))
    return SentencePieceTokenizer(path)
