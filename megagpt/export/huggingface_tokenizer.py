"""A tokenizer as Hugging Face's: tokenizer.json, tokenizer_config.json, special_tokens_map.json with the same ids.

A SentencePiece model becomes the `tokenizers` library's BPE with byte fallback. Its pieces are stored with real spaces
in place of U+2581, so no normaliser is needed and a U+2581 in the text is what it is: three bytes, as with us.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders
from tokenizers.models import BPE

from megagpt.errors import ConfigError
from megagpt.export.files import Files
from megagpt.tokenizer import Tokenizer
from megagpt.tokenizer.sentencepiece import SPACE_MARK
from megagpt.tokenizer.wordpiece import WordPieceTokenizer

_REMEDY = "train the tokenizer with data_tools/train_tokenizer.py, whose settings can be exported"


class _Piece(NamedTuple):
    text: str
    score: float


def write_tokenizer(tokenizer: Tokenizer, files: Files, context: int) -> None:
    """Write the three tokenizer files. Raises ConfigError for a tokenizer that the format cannot express."""
    content = tokenizer_json(tokenizer)
    files.write_text("tokenizer.json", content)
    end_symbol = tokenizers.Tokenizer.from_str(content).id_to_token(tokenizer.eod_id)
    symbols = dict.fromkeys(["bos_token", "eos_token", "pad_token"], end_symbol)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # without this transformers 4 passes token_type_ids, whose embedding GPT-2 adds: wrong logits without a warning
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "padding_side": "left",  # generation continues the right end
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a literal control symbol in the text is text, as with us
        **symbols,
    }
    files.write_json("tokenizer_config.json", settings)
    files.write_json("special_tokens_map.json", symbols)


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The text of a `tokenizer.json` that gives the ids of any tokenizer. Raises ConfigError if none can."""
    if isinstance(tokenizer, WordPieceTokenizer):
        return tokenizer.processor.to_str()
    if tokenizer.kind == "jieba-bpe":
        raise ConfigError(
            f"{tokenizer.path} is a Jieba-BPE tokenizer, which this format cannot express: transformers does not cut "
            "text into jieba's words, so its ids would be others; use the model through `megagpt generate`"
        )
    if tokenizer.kind == "sentencepiece":
        return sentencepiece_to_json(Path(tokenizer.path))
    return plain_json(Path(tokenizer.path).read_text(encoding="utf-8"))


def plain_json(content: str) -> str:
    """A `tokenizer.json` without padding, truncation and the symbols its template adds: plain ids, as ours are."""
    return json.dumps(
        json.loads(content) | {"padding": None, "truncation": None, "post_processor": None}, ensure_ascii=False
    )


def sentencepiece_to_json(path: Path) -> str:
    """The text of a `tokenizer.json` that gives the ids of a SentencePiece model. Raises ConfigError if none can."""
    try:
        from sentencepiece import sentencepiece_model_pb2  # needs protobuf
    except ImportError as error:
        raise ConfigError(
            f"exporting a SentencePiece tokenizer needs protobuf ({error}); install it: pip install 'megagpt[export]'"
        ) from None
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    _check_expressible(model, path)

    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    texts = [piece.piece.replace(SPACE_MARK, " ") for piece in model.pieces]
    normal = [
        _Piece(text, piece.score) for text, piece in zip(texts, model.pieces, strict=True) if piece.type == kinds.NORMAL
    ]
    unknown = next(piece.piece for piece in model.pieces if piece.type == kinds.UNKNOWN)
    bpe = BPE(
        vocab={text: token_id for token_id, text in enumerate(texts)},
        merges=merges_of(normal),
        byte_fallback=True,
        unk_token=unknown,
    )
    converted = tokenizers.Tokenizer(bpe)
    converted.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    for text, piece in zip(texts, model.pieces, strict=True):
        if piece.type in (kinds.UNKNOWN, kinds.CONTROL):
            converted.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        elif piece.type == kinds.USER_DEFINED:
            converted.add_tokens([AddedToken(text, special=False, normalized=False)])
    return converted.to_str()


def merges_of(pieces: list[_Piece]) -> list[tuple[str, str]]:
    """The merges, in order, by which BPE arrives at these pieces.

    SentencePiece stores only the score of each result and merges any two neighbours that form it; so every split of a
    piece into two others is a merge. It takes the leftmost of equal scores, where a list of merges needs an order
    among the splits of one piece: longer left parts come first. With this order and with the
    opposite one all of 180,000 random texts had sentencepiece's ids (three tokenizers, many texts repetitive).
    """
    known = {piece.text for piece in pieces}
    return [
        (piece.text[:cut], piece.text[cut:])
        for piece in sorted(pieces, key=lambda piece: -piece.score)
        for cut in range(len(piece.text) - 1, 0, -1)
        if piece.text[:cut] in known and piece.text[cut:] in known
    ]


def _check_expressible(model: Any, path: Path) -> None:
    """Raise ConfigError naming every setting of a SentencePiece model under which ids would differ."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    problems = []
    if trainer.model_type != trainer.BPE:
        problems.append("it is not BPE")
    if not trainer.byte_fallback:
        problems.append("it has no byte fallback")
    if trainer.treat_whitespace_as_suffix:
        problems.append("it treats whitespace as a suffix")
    if normalizer.add_dummy_prefix:
        problems.append("it adds a dummy prefix (add_dummy_prefix)")
    if normalizer.remove_extra_whitespaces:
        problems.append("it removes whitespace (remove_extra_whitespaces)")
    if normalizer.precompiled_charsmap:
        problems.append(f"it normalises text ({normalizer.name}); only identity keeps ids the same")
    if any(piece.type == piece.UNUSED for piece in model.pieces):
        problems.append("it has unused pieces")
    if problems:
        raise ConfigError(f"{path} cannot be exported with the same ids: {'; '.join(problems)}; {_REMEDY}")
