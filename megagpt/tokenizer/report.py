"""How a SentencePiece tokenizer does on texts. In: both. Out: compression, rates, use of the vocabulary."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from megagpt.tokenizer.sentencepiece import SPACE_MARK, SentencePieceTokenizer

_NUM_SHOWN = 5


class TokenizerReport(NamedTuple):
    """How a trained tokenizer does. Rates are shares of the tokens of the text it was judged on."""

    path: str
    fingerprint: str
    vocab_size: int
    corpus_bytes: int
    training_bytes: int
    judged_on: str  # "held-out text", or "training text" where the corpus is too small to hold any out
    judged_bytes: int
    characters_per_token: float
    bytes_per_token: float
    unknown_rate: float
    byte_fallback_rate: float
    vocabulary_used: float  # share of the pieces, bytes and control symbols left out, that occur
    longest_pieces: tuple[str, ...]  # of those that occur, the longest and among these the most frequent
    common_fallbacks: tuple[str, ...]  # the characters most often written as bytes, or unknown

    def lines(self) -> list[str]:
        """The report in words."""
        lines = [
            f"tokenizer      {self.path} ({self.vocab_size} ids, sha256 {self.fingerprint[:16]}…)",
            f"trained on     {self.training_bytes / 1e6:.2f} MB of the corpus's {self.corpus_bytes / 1e6:.2f} MB",
            f"judged on      {self.judged_bytes / 1e6:.3f} MB of {self.judged_on}",
            f"compression    {self.characters_per_token:.3f} characters/token, {self.bytes_per_token:.3f} bytes/token",
            f"unknown        {self.unknown_rate:.4%} of tokens",
            f"byte fallback  {self.byte_fallback_rate:.4%} of tokens",
            f"vocabulary     {self.vocabulary_used:.1%} of the pieces occur in that text",
            f"longest pieces {' '.join(self.longest_pieces)}",
        ]
        if self.common_fallbacks:
            lines.append(f"without piece  {' '.join(self.common_fallbacks)} (the most frequent)")
        return lines


def judge(
    tokenizer: SentencePieceTokenizer, pieces: Sequence[str], judged_on: str, corpus_bytes: int, training_bytes: int
) -> TokenizerReport:
    """Encode `pieces` and count."""
    processor = tokenizer.processor
    counts: Counter[int] = Counter()
    characters: Counter[str] = Counter()
    for piece in pieces:
        counts.update(tokenizer.encode(piece))
        characters.update(piece)
    num_tokens = counts.total()
    byte_ids = [token_id for token_id in range(tokenizer.vocab_size) if processor.is_byte(token_id)]
    learned = [token_id for token_id in range(tokenizer.vocab_size) if _is_learned(tokenizer, token_id)]
    used = sorted((token_id for token_id in learned if counts[token_id]), key=lambda token_id: -counts[token_id])
    texts = [processor.id_to_piece(token_id).replace(SPACE_MARK, "␣") for token_id in used]
    judged_bytes = sum(len(piece.encode("utf-8")) for piece in pieces)
    return TokenizerReport(
        path=tokenizer.path,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        corpus_bytes=corpus_bytes,
        training_bytes=training_bytes,
        judged_on=judged_on,
        judged_bytes=judged_bytes,
        characters_per_token=characters.total() / num_tokens,
        bytes_per_token=judged_bytes / num_tokens,
        unknown_rate=counts[processor.unk_id()] / num_tokens,
        byte_fallback_rate=sum(counts[token_id] for token_id in byte_ids) / num_tokens,
        vocabulary_used=len(used) / len(learned) if learned else 0.0,
        longest_pieces=tuple(sorted(texts, key=len, reverse=True)[:_NUM_SHOWN]),
        common_fallbacks=_without_piece(tokenizer, characters),
    )


def _is_learned(tokenizer: SentencePieceTokenizer, token_id: int) -> bool:
    processor = tokenizer.processor
    kinds = (processor.is_byte, processor.is_control, processor.is_unknown, processor.is_unused)
    return not any(is_kind(token_id) for is_kind in kinds)


def _without_piece(tokenizer: SentencePieceTokenizer, characters: Counter[str]) -> tuple[str, ...]:
    """The most frequent characters that alone become bytes or the unknown token, as U+XXXX where they are invisible."""
    processor = tokenizer.processor

    def has_no_piece(character: str) -> bool:
        ids = tokenizer.encode(character)
        return any(processor.is_byte(token_id) or processor.is_unknown(token_id) for token_id in ids)

    found = [character for character, _ in characters.most_common() if has_no_piece(character)][:_NUM_SHOWN]
    return tuple(character if character.isprintable() else f"U+{ord(character):04X}" for character in found)
