"""Proof that transformers gives our numbers from an exported folder: logits and token ids, compared one by one.

In: our model and tokenizer, the folder. Out: what was compared and the largest difference; raises where they differ.
"""

import random
from pathlib import Path
from typing import Any, NamedTuple

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


class Agreement(NamedTuple):
    """What was compared and found equal."""

    num_logits: int
    logits_max_difference: float
    num_texts: int


def verify(ours: InferenceModel, tokenizer: Tokenizer, folder: Path) -> Agreement:
    """Load `folder` with transformers and compare. Raises ExportError with the first disagreement."""
    import transformers

    transformers_logging = transformers.utils.logging
    bars_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers raises, the folder cannot be loaded
        raise ExportError(f"transformers {transformers.__version__} cannot load the export: {error}") from error
    finally:
        if bars_shown:
            transformers_logging.enable_progress_bar()
    num_logits, difference = compare_logits(ours, theirs.to(ours.device).eval())
    texts = probe_texts(tokenizer)
    compare_tokenizers(tokenizer, their_tokenizer, texts)
    return Agreement(num_logits, difference, len(texts))


def probe_tokens(spec: ModelSpec) -> list[Tensor]:
    """Random sequences [B, S] of every length that matters: one token, a few, half and all of the context."""
    generator = torch.Generator().manual_seed(_SEED)
    context = spec.sequence_length
    shapes = [(2, 1), (2, min(7, context)), (1, (context + 1) // 2), (1, context)]
    sequences = [torch.randint(0, spec.vocab_size, shape, generator=generator) for shape in shapes]
    sequences[-1][0, -1] = spec.vocab_size - 1  # the last row before the padding
    return sequences


def compare_logits(ours: InferenceModel, theirs: Any) -> tuple[int, float]:
    """Number of logits compared and the largest difference. Raises ExportError where it is not within tolerance."""
    largest, count = 0.0, 0
    for tokens in probe_tokens(ours.spec):
        tokens = tokens.to(ours.device)
        expected = ours.logits(tokens)
        with torch.inference_mode():
            found = theirs(input_ids=tokens).logits
        if found.shape != expected.shape:
            raise ExportError(
                f"transformers gives logits of shape {list(found.shape)}, ours are {list(expected.shape)}"
            )
        difference = float((found - expected).abs().max())
        if not difference <= LOGITS_TOLERANCE:  # also where it is not a number
            raise ExportError(
                f"logits of transformers differ from ours by {difference:.2e} on a sequence of "
                f"{tokens.shape[1]} tokens, more than {LOGITS_TOLERANCE:.0e} allows"
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


def compare_tokenizers(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    """Raise ExportError with the first text whose ids differ, or whose ids do not decode to what ours decode to."""
    encoded = theirs(texts, verbose=False)  # it would warn of texts longer than the context
    if set(encoded) != {"input_ids", "attention_mask"}:
        raise ExportError(f"the exported tokenizer gives {sorted(encoded)}, not input_ids and attention_mask alone")
    for text, found, expected in zip(texts, encoded["input_ids"], ours.encode_batch(texts), strict=True):
        if list(found) != expected:
            raise ExportError(f"token ids of {text!r} are {list(found)} in transformers, ours are {expected}")
        back, ours_back = theirs.decode(found, skip_special_tokens=True), ours.decode(expected)
        if back != ours_back:
            raise ExportError(f"the ids of {text!r} decode to {back!r} in transformers, ours to {ours_back!r}")
    if theirs.eos_token_id != ours.eod_id:
        raise ExportError(f"eos_token_id is {theirs.eos_token_id} in transformers, ours is {ours.eod_id}")
