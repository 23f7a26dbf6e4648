"""The native encoder gives sentencepiece's ids: every kind of model, any bytes, whole and in parts."""

import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import sentencepiece

from tests.unit.native.fuzz import (
    RULES,
    ModelKind,
    differences,
    differences_in_parts,
    model_kinds,
    random_texts,
    train,
)
from tests.unit.tokenizer.toy import toy_texts

_encoder = pytest.importorskip("megagpt.native._encoder", reason="the native core is not built: no C++ compiler")
_TEXTS_OF_A_KIND = 1500
_VOCAB_SIZE = 900


@pytest.fixture(scope="module")
def samples() -> list[str]:
    lines = [line for text in toy_texts(300) for line in text.split("\n")]
    chance = random.Random(3)
    letters = "abcdefghijklmnopqrstuvwxyz的一是不了在人有我他这个们中来上大为和国地到以说时要就出会"
    return [*lines, *("".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(3000))]


@pytest.mark.parametrize("kind", model_kinds(), ids=lambda kind: kind.name)
def test_random_texts_give_the_ids_of_sentencepiece(kind: ModelKind, samples: list[str], tmp_path: Path) -> None:
    (tmp_path / "rules.tsv").write_text(RULES, encoding="utf-8")
    model = train(kind, samples, str(tmp_path / "rules.tsv"), _VOCAB_SIZE)
    rng = random.Random(kind.name)
    source = random_texts(rng, samples)
    texts = [next(source) for _ in range(_TEXTS_OF_A_KIND)]
    assert differences(model, texts) == []
    whole = [text for text in texts if text.decode("utf-8", "replace").encode() == text][:200]
    assert differences_in_parts(model, whole, rng) == []


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_run_without_a_cut_takes_no_quadratic_time(model_type: str, samples: list[str]) -> None:
    """Runs of one letter, which every merge can join: 100 times the length must not take 10,000 times as long."""
    texts = [*samples, *("a" * length for length in range(1, 60))]
    model = train(ModelKind(model_type), texts, "", _VOCAB_SIZE)
    assert differences(model, [b"a" * 300_000, b"ab" * 100_000, "的".encode() * 50_000]) == []


def test_a_long_text_passes_the_place_where_unigram_sums_start_again(samples: list[str]) -> None:
    model = train(ModelKind("unigram"), samples, "", _VOCAB_SIZE)
    rng = random.Random(1)
    long = "".join(rng.choice(samples) for _ in range(40_000)).encode()
    assert differences(model, [long]) == []
    assert differences_in_parts(model, [long[: 2 * 10**5].decode("utf-8", "ignore").encode()], rng) == []


def test_equal_scores_are_merged_from_the_left() -> None:
    """Models converted from other formats have ties, which sentencepiece breaks by place."""
    model = _with_scores(train(ModelKind("bpe"), ["abababcbcbcacacaca"] * 50, "", 280), -1.0)
    texts = [bytes(random.Random(n).choices(b"abc ", k=30)) for n in range(2000)]
    assert differences(model, texts) == []


def test_a_u2581_in_the_text_is_three_bytes_where_the_model_changes_no_text(samples: list[str]) -> None:
    model = train(ModelKind("bpe"), samples, "", _VOCAB_SIZE)
    worker = _encoder.Worker(_encoder.Model(model, (7, 8, 9)), 0, 4)
    worker.encode_text("a▁b ▁".encode())
    ids = np.frombuffer(worker.take()[0], np.int32).tolist()
    alone = sentencepiece.SentencePieceProcessor(model_proto=model).encode
    assert ids == [*alone("a"), 7, 8, 9, *alone("b "), 7, 8, 9, 0]


@pytest.mark.parametrize(
    ("model", "reason"),
    [(b"\xff\xff", "damaged"), (b"\x0a\x05ab", "damaged"), (b"\x12\x02\x18\x03", "word or character model")],
)
def test_a_model_that_cannot_be_encoded_is_refused(model: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _encoder.Model(model, ())


def test_wrong_offsets_are_refused(samples: list[str]) -> None:
    worker = _encoder.Worker(_encoder.Model(train(ModelKind("bpe"), samples, "", _VOCAB_SIZE), ()), 0, 4)
    for offsets in ([0, 9], [3, 1], [-1, 2]):
        with pytest.raises(ValueError, match="offsets"):
            worker.encode_texts(b"abcd", np.array(offsets, np.int64).data, 0)


def _with_scores(model: bytes, score: float) -> bytes:
    """The model with one score for all pieces; needs protobuf, which the export extra brings."""
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(model)
    for piece in proto.pieces:
        if piece.type == piece.NORMAL:
            piece.score = score
    return proto.SerializeToString()


def test_memory_that_is_no_map_of_a_file_is_left_alone() -> None:
    """Long lines give their pages back; given back, memory that has no file behind it would be zeros."""
    line = b'{"text": "' + b"a" * (20 << 20) + b'"}'
    assert _encoder.find_text(line, b"text") == (0, 10, 10 + (20 << 20))
    assert line.count(b"\0") == 0


def test_only_a_model_makes_a_worker(samples: list[str]) -> None:
    forged = type("megagpt.native._encoder.Model", (), {})()
    with pytest.raises(TypeError, match="Worker"):
        _encoder.Worker(forged, 0, 2)
    model = train(ModelKind("bpe"), samples, "", _VOCAB_SIZE)
    for marks in ((-1,), (1 << 40,), tuple(range(13))):
        with pytest.raises((ValueError, OverflowError)):
            _encoder.Model(model, marks)


@pytest.mark.parametrize("kind", ["NORMAL", "USER_DEFINED", "UNUSED"])
def test_a_nul_piece_that_converters_leave_behind(samples: list[str], kind: str) -> None:
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(
        train(ModelKind("bpe"), samples, "", _VOCAB_SIZE)
    )
    proto.pieces.add(piece="\0", score=-1.0, type=getattr(proto.pieces[0], kind))
    assert differences(proto.SerializeToString(), [b"a\0a", b"\0", b"\0\0b"]) == []


def test_more_user_symbols_begin_alike_than_sentencepiece_looks_at(samples: list[str]) -> None:
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(
        train(ModelKind("bpe"), samples, "", _VOCAB_SIZE)
    )
    for length in range(2, 72):
        proto.pieces.add(piece="q" * length, score=0.0, type=proto.pieces[0].USER_DEFINED)
    assert differences(proto.SerializeToString(), [b"q" * length for length in range(1, 150)]) == []


@pytest.mark.parametrize("num_characters", [1, 2_047, 2_048, 5_000, 9_000])
def test_nothing_is_kept_of_a_text_that_is_not_utf8(num_characters: int, samples: list[str]) -> None:
    """Many documents are given out together, and some of a long one before its end is read."""
    model = train(ModelKind("bpe"), samples, "", _VOCAB_SIZE)
    good = [text.encode() for text in samples[:50]]
    bad = ("关羽" * num_characters)[:num_characters].encode() + b"\xff"
    expected = _Encoded.of(model, good)
    for number in (0, 1, 30, 49):
        texts = [*good[:number], bad, *good[number:]]
        worker = _encoder.Worker(_encoder.Model(model, ()), 7, 4)
        offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        assert worker.encode_texts(b"".join(texts), offsets.data, 0) == number
        assert worker.encode_texts(b"".join(texts), offsets.data, number + 1) == len(texts)
        assert _Encoded(*worker.take()) == expected


def test_offsets_must_rise_within_the_data(samples: list[str]) -> None:
    worker = _encoder.Worker(_encoder.Model(train(ModelKind("bpe"), samples, "", _VOCAB_SIZE), ()), 7, 4)
    for offsets in ([0, 4, 2], [0, 2, 5], [-1, 2, 3]):
        with pytest.raises(ValueError, match="offsets do not rise"):
            worker.encode_texts(b"abcd", np.array(offsets, np.int64).data, 0)


class _Encoded(NamedTuple):
    """What Worker.take gives."""

    ids: bytes
    lengths: bytes
    text_bytes: int
    num_characters: int

    @classmethod
    def of(cls, model: bytes, texts: list[bytes]) -> "_Encoded":
        """Each text encoded by itself."""
        worker = _encoder.Worker(_encoder.Model(model, ()), 7, 4)
        for text in texts:
            worker.encode_text(text)
        return cls(*worker.take())
