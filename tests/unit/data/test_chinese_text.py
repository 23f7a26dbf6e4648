"""Chinese text: one spelling for what looks the same, and a reason for each document that is left out."""

import random
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.data.chinese_text import (
    Rules,
    count_characters,
    garbled_share,
    normalize,
    reason_to_drop,
    repeated_lines,
    repeated_text,
)

PROSE = "话说天下大势，分久必合，合久必分：周末七国分争，并入于秦；及秦灭之后，楚、汉分争，又并入于汉。"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ＡＢＣ　ａｂｃ　０１２９", "ABC abc 0129"),
        ("他说：“好！”（笑）；是吗？", "他说：“好！”（笑）；是吗？"),  # full-width punctuation stays
        ("甲\r\n乙\r丙\u2028丁\u0085戊\v己", "甲\n乙\n丙\n丁\n戊\n己"),
        ("\u3000\u3000段一。 \n\t段二。  ", "段一。\n段二。"),
        ("甲\n\n\n \n\n乙", "甲\n\n乙"),
        ("a \u00a0\u3000 b", "a b"),
        ("\ufeff零\u200b宽\u200d字\u2060符\u00ad\x00\x07\x1b\x7f\u202e", "零宽字符"),
        ("私\ue000用\U000f0001区\ufffd", "私用区"),
        ("葛\U000e0100城", "葛城"),  # selects a glyph of the same character
        ("👩\u200d🚀 甲\u200d乙\u200d①", "👩\u200d🚀 甲乙①"),  # one emoji of two; nothing to join
        ("e\u0301 豈", "é 豈"),  # composed; U+F900 is U+8C48
        ("", ""),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_nfkc_makes_punctuation_ascii_and_nfc_does_not() -> None:
    text = "甲，乙！㈱①½"
    assert normalize(text, "NFKC") == unicodedata.normalize("NFKC", text) == "甲,乙!(株)11⁄2"
    assert normalize(text, "NFC") == text


_ANY_TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\n\r\u3000\u200d\u0301Ａ，👩\ufeff①🈁🄰"))
)


@given(_ANY_TEXT, st.sampled_from(["NFC", "NFKC"]))
def test_normalising_again_changes_nothing(text: str, form: str) -> None:
    once = normalize(text, form)  # type: ignore[arg-type]
    assert normalize(once, form) == once  # type: ignore[arg-type]


def test_characters_are_counted_by_kind() -> None:
    counts = count_characters("汉字𠀀〇かナ ab\né12①，.★=\U0010ffff")
    assert counts == (4, 2, 9, 3, 2, 2, 17)


def test_garbled_text_is_recognised_before_it_is_normalised() -> None:
    assert garbled_share("锟斤拷锟斤拷中国") == pytest.approx(6 / 8)
    assert garbled_share("中\ufffd\ue123国") == 0.5
    assert garbled_share(PROSE) == garbled_share("") == 0


def test_repetition() -> None:
    assert repeated_lines("甲乙\n丙\n甲乙\n甲乙") == 4 / 7
    assert repeated_text("一二三四五六七八九十" * 10) == pytest.approx(1 - 10 / 91)
    assert repeated_text(PROSE) == repeated_text("短") == 0
    rng = random.Random(1)
    long = "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(200_000))
    assert repeated_text(long + "重复" * 100_000) < 1e-4  # only the beginning is looked at


def _repeated_lines_text() -> str:
    lines = [f"{PROSE[start : start + 12]}" for start in range(0, 36, 12)]
    return "\n".join([*lines, lines[0], lines[1]])


# reason, a text that breaks only that rule, and the rule with which it may stay
BROKEN = [
    ("too short", "短短的。", {"min_characters": 4}),
    ("too long", PROSE, {"max_characters": len(PROSE)}),
    ("bad words", PROSE, {"bad_words": ("水泊梁山",)}),
    ("symbols", PROSE + "★◆■" * 3, {"max_symbols": 0.2}),
    ("punctuation", "目录……第一章……第二章……第三章……第四章……", {"max_punctuation": 0.5}),
    ("digits", "电话：13800138000，邮编：100871，价格：299元。", {"max_digits": 0.9}),
    ("japanese", "今日はとても良い天気ですね。散歩に行きましょう。", {"max_kana": 0.9}),
    ("not chinese", "Call me Ishmael. Some years ago, never mind how long precisely", {"min_han": 0.0}),
    ("repeated lines", _repeated_lines_text(), {"max_repeated_lines": 0.5}),
    ("repeated text", "点击下载最新版本软件，" * 5, {"max_repeated_text": 1.0}),
]
_STRICT = {"too long": {"max_characters": len(PROSE) - 1}, "bad words": {"bad_words": ("水泊梁山", "周末七国")}}


@pytest.mark.parametrize(("reason", "text", "looser"), BROKEN, ids=[reason for reason, _, _ in BROKEN])
def test_each_rule_gives_its_reason_and_can_be_loosened(reason: str, text: str, looser: dict) -> None:
    strict = replace(Rules(), **_STRICT.get(reason, {}))
    assert reason_to_drop(text, strict) == reason
    assert reason_to_drop(text, replace(strict, **looser)) is None


def test_good_chinese_stays() -> None:
    verse = "静夜思\n李白\n床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。"
    mixed = "深度学习框架 PyTorch 2.0 发布了，支持 torch.compile，训练速度平均提升 38%。"
    traditional = "臺灣的氣候濕熱，夏季常有颱風，冬季則溫和少雨，適合種植水稻與甘蔗。"
    for text in (PROSE, verse, mixed, traditional):
        assert reason_to_drop(normalize(text), Rules()) is None, text
