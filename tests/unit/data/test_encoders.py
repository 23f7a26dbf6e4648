"""The native and the library encoder give the same documents and the same errors, and the engine chooses rightly."""

import json
import os
import random
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

import megagpt.native
from megagpt.data import encoders
from megagpt.data.corpus_formats import BadDocument
from megagpt.data.encoders import Encoded, Encoder, SpooledIds, make_engine
from megagpt.data.sources_types import JsonLines, LongLine, LongText, Payload, Texts
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import mixed_texts

_DTYPE = np.dtype(np.uint16)
_LINES = (
    rb"""{"text": "ok"}

{"text": ""}
{"text": "a\ud800b"}
{"text": 5}
{"text": null}
{"t": 1}
[1]
{"text":"a","text":"bb"}
{"te\u0078t":"escaped key"}
{"text":"x"} x
{"text":"not closed
{"text":"wrong \q escape"}
{"a":[1,-0.5e+10,{"b":[null,true,NaN,{}]},[]],"text":"\u4e2d\ud83d\ude00\n\t\"\/\u0000","z":-Infinity}
{"a":01,"text":"x"}
{"a":[1,],"text":"x"}
{"text":"x",}
{ "text" : "blanks" , "b" : "\ud800" }  
"""
    + b'\t \t{"text":"x"}\t\n{"text":"\x01"}\n{"text":"\xff"}\n{"a":"\xff","text":"x"}\n'
    b'\x00\n \x0b\n{"text":"crlf"}\r\n\r\n{"text":"last"}'
)


def _engines(tokenizer: SentencePieceTokenizer, spool: Path) -> tuple[Encoder, Encoder]:
    pytest.importorskip("megagpt.native._encoder", reason="the native core is not built: no C++ compiler")
    native = make_engine(tokenizer, _DTYPE, "text", spool, mixed_texts(50))
    assert (native.name, native.note) == ("native", None)
    library = make_engine(tokenizer, _DTYPE, "text", spool, [], native=False)
    assert (library.name, library.note) == ("sentencepiece", "the native encoder is switched off")
    return native.encoder(), library.encoder()


def _same(encoders: tuple[Encoder, Encoder], payload: Payload) -> Encoded:
    native, library = (_in_memory(encoder.encode(payload)) for encoder in encoders)
    assert native.lengths.tolist() == library.lengths.tolist()
    assert native._replace(lengths=library.lengths) == library
    assert len(native.ids) == native.lengths.sum() * _DTYPE.itemsize
    return native


def _in_memory(encoded: Encoded) -> Encoded:
    if not isinstance(encoded.ids, SpooledIds):
        return encoded
    ids = encoded.ids.path.read_bytes()
    assert len(ids) == encoded.ids.num_bytes
    encoded.ids.path.unlink()
    return encoded._replace(ids=ids)


def test_lines_of_every_kind(toy_tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    found = _same(_engines(toy_tokenizer, tmp_path), JsonLines(_LINES))
    assert len(found.lengths) == 8
    reasons = [bad.reason for bad in found.bad]
    assert reasons[:6] == [
        "empty text",
        "lone surrogate",
        *["'text' is not text"] * 2,
        "no key 'text'",
        "not a JSON object",
    ]
    assert reasons.count("invalid UTF-8") == 2
    assert reasons.count("not JSON") == 8
    for bad in found.bad:
        assert bad.position == 0 or _LINES[bad.position - 1 : bad.position] == b"\n", "the line's first byte"


def test_random_lines(toy_tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    chance = random.Random(0)
    pair = _engines(toy_tokenizer, tmp_path)
    for number in range(300):
        lines = []
        for text in mixed_texts(chance.randint(0, 8), seed=number):
            row = {"id": number, "text": text, "meta": {"a": [text[:3], None]}}
            line = json.dumps(row, ensure_ascii=chance.random() < 0.5).encode()
            if chance.random() < 0.2:  # damaged anywhere
                place = chance.randrange(len(line))
                line = line[:place] + chance.choice([b"", b"\\", b'"', b"}", b"\xe4", b"\x00"]) + line[place + 1 :]
            lines.append(line)
        _same(pair, JsonLines(chance.choice([b"\n", b"\r\n", b"\n\n"]).join(lines)))


def test_texts_of_a_table(toy_tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    rows = [b"", b"a", "中文 text".encode(), b"\xff", b"x" * 1000, b"", b"not text", "末".encode(), b"\xe4\xb8"]
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    not_text = (6, BadDocument("'text' is not text", "name another"))
    found = _same(_engines(toy_tokenizer, tmp_path), Texts(b"".join(rows), offsets, (not_text,)))
    assert [(bad.position, bad.reason) for bad in found.bad] == [
        (0, "empty text"),
        (3, "invalid UTF-8"),
        (5, "empty text"),
        (6, "'text' is not text"),
        (8, "invalid UTF-8"),
    ]
    later = Texts(b"".join(rows) + b"more", offsets[1:4], ())
    assert len(_same(_engines(toy_tokenizer, tmp_path), later).lengths) == 2


def test_long_documents(toy_tokenizer: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = _engines(toy_tokenizer, tmp_path)
    monkeypatch.setattr("megagpt.data.encoders_native._WINDOW_BYTES", 1000)
    path = tmp_path / "long"
    for number in range(20):
        text = "".join(mixed_texts(80, seed=number)) + "end\r"
        for ascii_only in (False, True):
            line = json.dumps({"a": [1, 2], "text": text, "b": "x" * 3000}, ensure_ascii=ascii_only).encode() + b"\n"
            path.write_bytes(b"before\n" + line)
            assert len(_same(pair, LongLine(path, 7, 7 + len(line))).lengths) == 1
        path.write_bytes(b"\xef\xbb\xbf" * (number % 2) + text.replace("\n", "\r\n").encode())
        assert len(_same(pair, LongText(path, 0, path.stat().st_size)).lengths) == 1
    for content in (
        b"ab" * 700 + b"\xe4",
        b"a" * 999 + b"\xe4\xb8" + b"b" * 3000,
        b"\xff" + b"a" * 5000,
        b"",
        b"\xef\xbb\xbf",
    ):
        path.write_bytes(content)
        bad = _same(pair, LongText(path, 0, len(content))).bad
        assert [found.reason for found in bad] == ["invalid UTF-8" if len(content) > 3 else "empty text"]
    assert list(tmp_path.iterdir()) == [path], "no spooled ids are left"


@pytest.mark.parametrize("line", [b" " * 5000, b"\t\r\n", b"\x0b\x0c \n"])
def test_a_long_blank_line_is_passed_over(toy_tokenizer: SentencePieceTokenizer, tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "long"
    path.write_bytes(b'{"text": "a"}\n' + line)
    found = _same(_engines(toy_tokenizer, tmp_path), LongLine(path, 14, 14 + len(line)))
    assert (len(found.lengths), found.bad) == (0, ())


@pytest.mark.parametrize("payload", [LongText, LongLine])
@pytest.mark.parametrize("encoder", [0, 1])
def test_a_long_file_that_has_become_shorter(
    toy_tokenizer: SentencePieceTokenizer, tmp_path: Path, payload: type[LongText | LongLine], encoder: int
) -> None:
    path = tmp_path / "long"
    path.write_bytes(b'{"text": "' + b"a" * 5000 + b'"}')
    with pytest.raises(DataError, match=r"long has changed while it was read: it had 6000 bytes .*, 5012 now; run aga"):
        _engines(toy_tokenizer, tmp_path)[encoder].encode(payload(path, 10, 6000))
    assert list(tmp_path.iterdir()) == [path], "no spooled ids are left"


@pytest.mark.parametrize("payload", [LongText, LongLine])
def test_a_long_file_that_is_cut_while_it_is_encoded(
    toy_tokenizer: SentencePieceTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    payload: type[LongText | LongLine],
) -> None:
    native, _ = _engines(toy_tokenizer, tmp_path)
    path = tmp_path / "long"
    path.write_bytes(b'{"text": "' + b"a" * 50_000 + b'"}')
    monkeypatch.setattr("megagpt.data.encoders_native._WINDOW_BYTES", 1000)
    write_ids = native._write_ids  # type: ignore[attr-defined]

    def cut(stream: BinaryIO) -> int:
        os.truncate(path, 3000)
        return write_ids(stream)

    monkeypatch.setattr(native, "_write_ids", cut)
    with pytest.raises(DataError, match=r"long has changed while it was read: .*, 3000 now; run again"):
        native.encode(payload(path, 0, path.stat().st_size))
    assert list(tmp_path.iterdir()) == [path], "no spooled ids are left"


@pytest.mark.parametrize(
    "line", [b'{"t": 1}', b'{"text": "a', b'{"text": "a", "text": "b"}', b'{"text": "\\ud800"}', b"[]"]
)
def test_a_long_line_that_is_wrong(toy_tokenizer: SentencePieceTokenizer, tmp_path: Path, line: bytes) -> None:
    native, _ = _engines(toy_tokenizer, tmp_path)
    path = tmp_path / "long"
    path.write_bytes(line)
    found = native.encode(LongLine(path, 0, len(line)))
    assert len(found.lengths) == 0
    assert [bad.reason for bad in found.bad] == ["unreadable long line"]
    assert f"the line of {len(line)} bytes is no JSON object with a text under 'text'" in found.bad[0].message
    assert len(_in_memory(native.encode(JsonLines(b'{"text": "a"}'))).lengths) == 1, "what was begun is forgotten"


def test_a_difference_is_found_and_the_library_is_used(
    toy_tokenizer: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _engines(toy_tokenizer, tmp_path)
    monkeypatch.setattr(encoders, "_DIFFICULT_TEXTS", ())
    right = toy_tokenizer.encode_batch
    monkeypatch.setattr(
        toy_tokenizer,
        "encode_batch",
        lambda texts, num_threads=1: [[*row, 5] if "☃" in text else row for text, row in zip(texts, right(texts))],  # noqa: B905
    )
    assert make_engine(toy_tokenizer, _DTYPE, "text", tmp_path, ["天下", "ok"]).name == "native"
    engine = make_engine(toy_tokenizer, _DTYPE, "text", tmp_path, ["天下", "a☃"])
    assert engine.name == "sentencepiece"
    assert engine.note is not None
    assert "gives other ids than sentencepiece for 'a☃' and is not used" in engine.note


def test_without_the_native_core_the_library_is_used_and_said(
    toy_tokenizer: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "megagpt.data.encoders_native", raising=False)
    monkeypatch.setitem(sys.modules, "megagpt.native._encoder", None)
    monkeypatch.delattr(megagpt.native, "_encoder", raising=False)
    engine = make_engine(toy_tokenizer, _DTYPE, "text", tmp_path, [])
    assert engine.name == "sentencepiece"
    assert engine.note is not None
    assert "the native encoder is not built" in engine.note
    assert "install a C++ compiler" in engine.note
    assert len(engine.encoder().encode(JsonLines(b'{"text": "a"}')).lengths) == 1
