"""Chinese text made uniform and judged. In: a text. Out: the text in its normal form, or the reason to leave it out.

Pure functions of text; knows nothing of files or pipelines. The limits are ours, chosen so that prose, statutes and
classical verse stay (docs/cleaning.md says what they removed there); their effect on a trained model is unmeasured.
"""

import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Form = Literal["NFC", "NFKC"]

# Letters and digits in full width (U+FF21 Ａ) take their ASCII form; full-width punctuation is Chinese, and stays.
_SPACES = "\t\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_LINE_ENDS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_UNIFORM: Mapping[int, int | str] = MappingProxyType(
    {
        **{ord("！") + code - ord("!"): code for code in map(ord, string.ascii_letters + string.digits)},
        **dict.fromkeys(map(ord, _SPACES), " "),
        **dict.fromkeys(map(ord, _LINE_ENDS), "\n"),
    }
)
# What no reader sees: control and format characters, selectors of a glyph's variant, private use, noncharacters, and
# U+FFFD. A joiner before an emoji stays.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ue000-\uf8ff\ufdd0-\ufdef\ufeff\ufff9-\uffff\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
    "|\u200d(?![\u2194\u2195\u2600-\u27bf\u2b1b\U0001f300-\U0001faff])"
)
# What is left of text that was decoded wrongly: U+FFFD, private use, C1 controls, and GBK's reading of U+FFFD and of
# uninitialised memory.
_GARBLED = re.compile("[\x80-\x84\x86-\x9f\ufffd\ue000-\uf8ff]|锟斤拷|烫烫烫|屯屯屯")

_REPETITION_WINDOW = 10  # characters; about six words
_REPETITION_SAMPLE = 200_000  # characters from the start of a document: repetition does not depend on its length
_LAST_HAN = 0x323AF
_HAN_RANGES = ((0x3007, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, _LAST_HAN))
_KANA_RANGES = ((0x3041, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D))
_OTHER, _HAN, _KANA, _LETTER, _DIGIT, _PUNCTUATION, _SYMBOL, _SPACE = range(8)


@dataclass(frozen=True)
class Rules:
    """When a document is left out. Shares are of its characters without spaces, where nothing else is said."""

    min_characters: int = 20
    max_characters: int = 10_000_000
    min_han: float = 0.3  # of the letters: Han characters, kana and alphabets
    max_kana: float = 0.1  # of the letters; more is Japanese
    max_digits: float = 0.3
    max_punctuation: float = 0.4
    max_symbols: float = 0.1
    max_garbled: float = 0.005
    max_repeated_lines: float = 0.3  # characters in lines that the document had before
    max_repeated_text: float = 0.5  # runs of 10 characters that the document had before
    bad_words: tuple[str, ...] = ()  # a document with any of them is left out


class TextCounts(NamedTuple):
    """Characters of a text by kind; `letters` counts Han and kana too."""

    han: int
    kana: int
    letters: int
    digits: int
    punctuation: int
    symbols: int
    visible: int  # all but spaces


def normalize(text: str, form: Form = "NFC") -> str:
    """`text` with one spelling for what looks the same; doing it again changes nothing.

    Invisible characters go; full-width letters and digits become ASCII; all line ends are LF and all spaces U+0020,
    one at a time and none at a line's ends; at most one empty line stays between two others. NFC keeps Chinese
    punctuation; NFKC makes it ASCII where there is such a form (，becomes a comma), as nmt_nfkc tokenizers do.
    """
    text = _INVISIBLE.sub("", text.replace("\r\n", "\n"))
    text = unicodedata.normalize(form, text.translate(_UNIFORM))
    text = re.sub(" *\n *", "\n", re.sub("  +", " ", text))
    return re.sub("\n{3,}", "\n\n", text).strip(" \n")


def count_characters(text: str) -> TextCounts:
    """How many characters of each kind `text` has."""
    codes = _codes(text)
    classes = _classes()
    counts = np.bincount(classes[np.minimum(codes, len(classes) - 1)], minlength=8).tolist()
    return TextCounts(
        han=counts[_HAN],
        kana=counts[_KANA],
        letters=counts[_HAN] + counts[_KANA] + counts[_LETTER],
        digits=counts[_DIGIT],
        punctuation=counts[_PUNCTUATION],
        symbols=counts[_SYMBOL],
        visible=len(codes) - counts[_SPACE],
    )


def garbled_share(text: str) -> float:
    """Share of a text's characters that show that it was decoded wrongly; `normalize` would hide some of them."""
    return sum(map(len, _GARBLED.findall(text))) / max(len(text), 1)


def repeated_lines(text: str) -> float:
    """Share of a text's characters that stand in lines which were in it before."""
    seen: set[str] = set()
    repeated = total = 0
    for line in text.split("\n"):
        total += len(line)
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return repeated / max(total, 1)


def repeated_text(text: str) -> float:
    """Share of the runs of 10 characters in a text's first 200,000 that were in it before."""
    codes = _codes(text[:_REPETITION_SAMPLE]).astype(np.uint64)
    num_runs = len(codes) - _REPETITION_WINDOW + 1
    if num_runs < 2:
        return 0.0
    hashes = np.zeros(num_runs, dtype=np.uint64)
    for offset in range(_REPETITION_WINDOW):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + num_runs]
    return 1 - len(np.unique(hashes)) / num_runs


def reason_to_drop(text: str, rules: Rules) -> str | None:
    """Why a normalised text should be left out, by the name of the first rule it breaks; None where it may stay."""
    if len(text) < rules.min_characters:
        return "too short"
    if len(text) > rules.max_characters:
        return "too long"
    if any(word in text for word in rules.bad_words):
        return "bad words"
    counts = count_characters(text)
    visible, letters = max(counts.visible, 1), max(counts.letters, 1)
    shares = (
        ("symbols", counts.symbols / visible, rules.max_symbols),
        ("punctuation", counts.punctuation / visible, rules.max_punctuation),
        ("digits", counts.digits / visible, rules.max_digits),
        ("japanese", counts.kana / letters, rules.max_kana),
        ("not chinese", -counts.han / letters, -rules.min_han),
        ("repeated lines", repeated_lines(text), rules.max_repeated_lines),
        ("repeated text", repeated_text(text), rules.max_repeated_text),
    )
    return next((reason for reason, share, limit in shares if share > limit), None)


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


@cache
def _classes() -> NDArray[np.uint8]:
    """The kind of each code point up to the last Han character; the last entry stands for all beyond."""
    kinds = {"L": _LETTER, "M": _LETTER, "N": _DIGIT, "P": _PUNCTUATION, "S": _SYMBOL, "Z": _SPACE}
    categories = (unicodedata.category(chr(code))[0] for code in range(_LAST_HAN + 1))
    classes = np.array([*(kinds.get(category, _OTHER) for category in categories), _OTHER], dtype=np.uint8)
    classes[ord("\n")] = _SPACE
    for first, last in _HAN_RANGES:
        classes[first : last + 1] = _HAN
    for first, last in _KANA_RANGES:
        classes[first : last + 1] = _KANA
    return classes
