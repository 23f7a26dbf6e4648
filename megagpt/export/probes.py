"""What an export is compared on: token sequences and texts that tell models and tokenizers apart, and the comparison.

Seeded: the same for the same model and tokenizer.
"""

import random
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from megagpt.errors import ExportError
from megagpt.inference.model import InferenceModel
from megagpt.model.spec import ModelSpec
from megagpt.tokenizer import Tokenizer

LOGITS_TOLERANCE = 1e-4  # measured worst: see docs/export.md
_SEED = 20240229
_NUM_TEXTS = 3000
_ALPHABETS = [
    "春江潮水连海平海上明月共潮生滟滟随波千万里何处无",
    "，。、；：？！「」『』《》（）——……“”",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789",
    " \t\n\r\u00a0\u3000\u2003\u200b\u200d\ufeff\u2581",
    "".join(map(chr, range(128))),
    "éüñßøłčАБВГДאבגابتकखगไทย한국어ひらがなカタカナ",
    "ｆｕｌｌ１２３ﬁ①½²e\u0301a\u0308가",
    "😀🎉👨‍👩‍👧🏽🇨🇳❤️𠮷𪚥𝒳\U0010ffff\ufffd\ufffe",
]
_MARKERS = [
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<|endoftext|>",
    "<eod>",
    "<sep>",
    "[CLS]",
    "[SEP]",
    "<0x41>",
    "<0xE6>",
    "##",
]


def probe_tokens(spec: ModelSpec) -> list[Tensor]:
    """Random sequences [B, S] of every length that matters: one token, a few, half and all of the context."""
    generator = torch.Generator().manual_seed(_SEED)
    context = spec.sequence_length
    shapes = [(2, 1), (2, min(7, context)), (1, (context + 1) // 2), (1, context)]
    sequences = [torch.randint(0, spec.vocab_size, shape, generator=generator) for shape in shapes]
    sequences[-1][0, -1] = spec.vocab_size - 1  # the last row before the padding
    return sequences


def compare_logits(
    ours: InferenceModel, theirs: Callable[[Tensor], Tensor], client: str, tolerance: float = LOGITS_TOLERANCE
) -> tuple[int, float]:
    """Number of logits compared and the largest difference. Raises ExportError where it is not within `tolerance`.

    `theirs` maps tokens [B, S] to the client's logits [B, S, V] in float32.
    """
    largest, count = 0.0, 0
    for tokens in probe_tokens(ours.spec):
        tokens = tokens.to(ours.device)
        expected = ours.logits(tokens)
        with torch.inference_mode():
            found = theirs(tokens)
        if found.shape != expected.shape:
            raise ExportError(f"{client} gives logits of shape {list(found.shape)}, ours are {list(expected.shape)}")
        difference = float((found - expected).abs().max())
        if not difference <= tolerance:  # also where it is not a number
            raise ExportError(
                f"logits of {client} differ from ours by {difference:.2e} on a sequence of "
                f"{tokens.shape[1]} tokens, more than {tolerance:.0e} allows"
            )
        largest, count = max(largest, difference), count + expected.numel()
    return count, largest


def probe_texts(tokenizer: Tokenizer) -> list[str]:
    """Texts that tell tokenizers apart: scripts, emoji, whitespace, control symbols, runs, joined pieces."""
    source = random.Random(_SEED)
    pieces = [text for token_id in range(tokenizer.vocab_size) if (text := tokenizer.decode([token_id]))]
    pieces = [piece for piece in pieces if "\ufffd" not in piece] or ["a"]
    texts = ["", " ", "\n", "  \n\n\t ", *_MARKERS]
    while len(texts) < _NUM_TEXTS:
        kind = source.choice(["alphabet", "pieces", "mixed", "runs"])
        length = source.randint(1, 40)
        if kind == "alphabet":
            units = source.choices(source.choice(_ALPHABETS), k=length)
        elif kind == "pieces":
            units = source.choices(pieces, k=length)
        elif kind == "mixed":
            units = [source.choice(source.choice([*_ALPHABETS, pieces, _MARKERS])) for _ in range(length)]
        else:
            units = [source.choice(source.choice([*_ALPHABETS, pieces])) * source.randint(1, 12) for _ in range(4)]
        texts.append("".join(units))
    return texts


def compare_ids(tokenizer: Tokenizer, texts: list[str], theirs: Iterable[list[int]], client: str) -> None:
    """Raise ExportError with the first text whose ids differ. `theirs`: the client's ids of each text."""
    for text, found, expected in zip(texts, theirs, tokenizer.encode_batch(texts), strict=True):
        if list(found) != expected:
            raise ExportError(f"token ids of {text!r} are {list(found)} in {client}, ours are {expected}")
