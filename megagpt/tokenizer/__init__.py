"""Tokenizers behind one protocol: text to token ids and back. Knows nothing of datasets, models or torch."""

from megagpt.tokenizer.load import load_tokenizer
from megagpt.tokenizer.protocol import StreamDecoder, Tokenizer, TokenizerKind

__all__ = ["StreamDecoder", "Tokenizer", "TokenizerKind", "load_tokenizer"]
