"""A SentencePiece BPE model as a Hugging Face tokenizer, for the peers that read no SentencePiece file.

In: a `.model` (identity or precompiled normalisation). Out: a folder with tokenizer.json and tokenizer_config.json, and
the end-of-document symbol, printed. Whether its ids are the model's is not promised here: the benchmark
compares every peer's output with ours.
"""

import json
import sys
from pathlib import Path
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # ModelProto.SentencePiece.Type


def merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that joins to a piece, best score first (HF's BPE has pairs, SentencePiece scores)."""
    pairs: list[tuple[float, int, str, str]] = []
    for piece, score in scores.items():
        cuts = [at for at in range(1, len(piece)) if piece[:at] in scores and piece[at:] in scores]
        pairs += [(-score, at, piece[:at], piece[at:]) for at in cuts]
    return [(left, right) for _, _, left, right in sorted(pairs)]


def convert(model_file: str, folder: Path) -> None:
    """Write the tokenizer files of `model_file` into `folder`. Raises SystemExit on a model that is not BPE."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

    model: Any = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(Path(model_file).read_bytes())
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise SystemExit(f"{model_file} is not a BPE model: it cannot be written as a list of merges")
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    vocabulary = {piece: token_id for token_id, (piece, _, _) in enumerate(pieces)}
    unknown = next(piece for piece, _, kind in pieces if kind == UNKNOWN)
    has_bytes = any(kind == BYTE for _, _, kind in pieces)
    rules = merges({piece: score for piece, score, kind in pieces if kind == NORMAL})
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=rules, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    )
    spec = model.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    user = [piece for piece, _, kind in pieces if kind == USER_DEFINED]
    control = [piece for piece, _, kind in pieces if kind == CONTROL]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in user])
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = model.trainer_spec.eos_piece
    print(eos)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
