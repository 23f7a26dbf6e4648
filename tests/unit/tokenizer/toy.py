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


ALPHABETS = (
    "天下大势分久必合春江潮水连海平龘𠮷",
    "，。、；：？！「」《》（）——……“”",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 '-.,#&%+_",
    " \t\n\r\u00a0\u3000\u2003\u200b\u200d\ufeff\u2581\u2028\x0b\x1c\x85",
    "".join(map(chr, range(128))),
    "éüñßøłčАБВאבगきカ한가e\u0301a\u0308İΣς豈",
    "ｆｕ１２ﬁ①²😀👨‍👩‍👧🏽❤️\U0010ffff\ufffd\0",
)
_WHOLE = ("\n", "\r\n", "<sep>", "<|endoftext|>", "<s>", "the quick fox", "中华人民共和国公民有权", "2024")


def mixed_texts(count: int, seed: int = 0) -> list[str]:
    """`count` texts that mix runs of every alphabet, of up to a few hundred characters."""
    chance = random.Random(seed)

    def run() -> str:
        if chance.random() < 0.25:
            return chance.choice(_WHOLE)
        return "".join(chance.choices(chance.choice(ALPHABETS), k=chance.randint(1, 30)))

    return ["".join(run() for _ in range(chance.randint(0, 10))) for _ in range(count)]


def write_toy_vocabulary(path: Path) -> Path:
    """A BERT vocab.txt: the five symbols, characters (龘, ； and others not), words, and pieces inside words."""
    characters = sorted(set("".join(ALPHABETS[:3]) + "éАきカ中国人") - set(" 龘𠮷；《%ABCXYZ"))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    inside = [f"##{piece}" for piece in (*letters, "text", "ick", "of")]
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text("\n".join([*symbols, *characters, "the", "quick", "The", "endo", *inside]) + "\n", encoding="utf-8")
    return path
