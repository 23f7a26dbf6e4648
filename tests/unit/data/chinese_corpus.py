"""A made-up Chinese corpus with duplicates, near-duplicates and rubbish planted in it."""

import json
import random
from pathlib import Path
from typing import NamedTuple

NUM_GOOD = 60
RUBBISH = {
    "too short": "更多内容",
    "garbled": "锟斤拷" * 20,
    "not chinese": "Call me Ishmael. Some years ago, never mind how long precisely, having little money",
    "symbols": "★◆■" * 20 + "欢迎光临本店",
    "digits": "0123456789" * 5 + "联系电话",
    "japanese": "今日はとても良い天気ですね。散歩に行きましょう。",
    "repeated text": "点击下载最新版本软件，" * 12,
    "repeated lines": "\n".join(["首页 新闻 体育 财经 娱乐", "甲乙丙丁戊己庚辛壬癸子丑"] * 3),
    "punctuation": "目录……第一章……第二章……第三章……第四章……",
}


class Planted(NamedTuple):
    """`good`: the texts that should stay, in their normal form; of each near-duplicate only one version."""

    good: list[str]
    num_exact: int
    num_near: int


def sentence(rng: random.Random, length: int) -> str:
    return "".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(length)) + rng.choice("，。！？")


def good_text(seed: int) -> str:
    rng = random.Random(seed)
    return "\n".join("".join(sentence(rng, rng.randint(4, 14)) for _ in range(3)) for _ in range(rng.randint(4, 9)))


def edited(text: str, seed: int) -> str:
    """`text` with a character in 100 replaced."""
    rng, characters = random.Random(seed), list(text)
    for _ in range(max(1, len(text) // 100)):
        place = rng.randrange(len(text))
        characters[place] = "某" if characters[place] != "\n" else "\n"
    return "".join(characters)


def write_corpus(folder: Path) -> Planted:
    """a.jsonl and b.jsonl: good texts, some of them again in other spellings or nearly so, and one of each rubbish."""
    good = [good_text(seed) for seed in range(NUM_GOOD)]
    exact = [
        good[3],
        "\ufeff\u3000\u3000" + good[7].replace("\n", "\r\n\u3000\u3000"),
        good[11].replace("。", "。\u200b").replace("，", ","),
        good[12].replace("\n", "\n\n\n"),
    ]
    near = [edited(good[seed], seed) for seed in (20, 21, 22, 23, 24)]
    texts = [*good, *exact, *near, *RUBBISH.values()]
    random.Random(1).shuffle(texts)
    for name, part in (("a.jsonl", texts[:50]), ("b.jsonl", texts[50:])):
        rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part]
        (folder / name).write_text("".join(rows), encoding="utf-8")
    return Planted(good, len(exact), len(near))
