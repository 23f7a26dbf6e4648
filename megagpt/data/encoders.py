"""Which encoder a build uses. In: a tokenizer and a sample of the input. Out: an Engine that makes encoders.

SentencePiece models are encoded by the native core where it is built and gives, on the sample and on texts that are
made to be difficult, exactly sentencepiece's ids. Everything else is encoded by the tokenizer's own library.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megagpt.data.encoded import EMPTY_TEXT, BadAt, Encoded, Encoder, SpooledIds
from megagpt.data.encoders_library import LibraryEncoder
from megagpt.tokenizer.protocol import Tokenizer

if TYPE_CHECKING:
    from megagpt.data.encoders_native import NativeEncoder

__all__ = ["EMPTY_TEXT", "BadAt", "Encoded", "Encoder", "Engine", "SpooledIds", "find_difference", "make_engine"]

# Every kind of character and of cut that the native core treats apart.
_DIFFICULT_TEXTS = (
    " ",
    "  a  b  ",
    "\n\r\n\t\x00\x01\x7f\x85",
    "▁▁a▁ ▁\n▁",
    "，。「」《》…—·ａＡ１ｶﾞ①㍿ﬁ",
    "e\u0301 é \u1112\u1161\u11ab 한 \u200b\u200d\ufeff\u2028\u00a0\u3000",
    "😀👨‍👩‍👧‍👦🇨🇳\U00020000\U000e0001\U0010ffff\ufffd",
    "<s></s><unk><|endoftext|><0x0A>",
    "1234567890 3.14159 x=y+z; http://例え.jp/?q=%E4%BD%A0",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 4,
    "的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的" * 4,
)
_LONG_CHECK_CHARACTERS = 60_000  # beyond the place where sentencepiece's unigram sums start again from 0
_MAX_CHECKED_CHARACTERS = 200_000


class Engine(NamedTuple):
    """How a build encodes: "native" or the tokenizer's kind; `note` says why a SentencePiece model is not native."""

    name: str
    note: str | None
    encoder: Callable[[], Encoder]  # a fresh one for each thread


def make_engine(
    tokenizer: Tokenizer,
    dtype: np.dtype,
    text_key: str,
    spool: Path,
    sample: Sequence[str],
    native: bool = True,
) -> Engine:
    """The fastest encoder that gives the ids of `tokenizer`, as `dtype`, for texts under `text_key`.

    `sample`: texts of the input that the native core is checked on. `spool`: a folder for the ids of long documents.
    `native=False` does without the native core.
    """

    def library_encoder() -> Encoder:
        return LibraryEncoder(tokenizer, dtype, text_key)

    if tokenizer.kind != "sentencepiece":
        return Engine(tokenizer.kind, None, library_encoder)
    if not native:
        return Engine(tokenizer.kind, "the native encoder is switched off", library_encoder)
    try:
        from megagpt.data.encoders_native import NativeEncoder
        from megagpt.native import _encoder
    except ImportError as error:
        note = f"the native encoder is not built ({error}); install a C++ compiler and megagpt again"
        return Engine(tokenizer.kind, note, library_encoder)
    try:
        model = _encoder.Model(tokenizer.model_bytes, tuple(tokenizer.space_mark_ids))  # type: ignore[attr-defined]
    except ValueError as error:
        return Engine(tokenizer.kind, f"the native encoder cannot be used: {error}", library_encoder)

    def native_encoder() -> "NativeEncoder":
        return NativeEncoder(model, tokenizer.eod_id, dtype, text_key, spool)

    difference = find_difference(native_encoder(), tokenizer, sample)
    if difference is not None:
        note = f"the native encoder gives other ids than sentencepiece for {difference!r} and is not used: report this"
        return Engine(tokenizer.kind, note, library_encoder)
    return Engine("native", None, native_encoder)


def find_difference(encoder: "NativeEncoder", tokenizer: Tokenizer, sample: Sequence[str]) -> str | None:
    """The first text of `sample`, or of those that are made to be difficult, whose ids differ; None where none does."""
    texts = [*_DIFFICULT_TEXTS]
    size = 0
    for text in sample:
        texts.append(text[: _MAX_CHECKED_CHARACTERS - size])
        size += len(texts[-1])
        if size >= _MAX_CHECKED_CHARACTERS:
            break
    joined = "".join(texts)
    texts.append((joined * (_LONG_CHECK_CHARACTERS // len(joined) + 1))[:_LONG_CHECK_CHARACTERS])
    expected = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, expected, strict=True):
        if encoder.encode_text(text.encode("utf-8")) != ids:
            return text if len(text) <= 80 else f"{text[:80]}…"
    return None
