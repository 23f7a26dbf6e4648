"""Hugging Face's `tokenizer.json` as a Tokenizer. In: the file. Out: the ids that `tokenizers` gives for plain text."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from megagpt.errors import DataError
from megagpt.tokenizer.checks import check_ids, check_unicode
from megagpt.tokenizer.protocol import END_OF_DOCUMENT, TokenizerKind
from megagpt.tokenizer.slices import encode_in_slices

# Symbols that end a document in published tokenizers, in the order in which they are looked for.
_END_SYMBOLS = (END_OF_DOCUMENT, "<eod>", "</s>", "[SEP]")


def read_tokenizer_json(content: bytes, path: str) -> tokenizers.Tokenizer:
    """The library's tokenizer from a file's content, without padding and truncation. Raises DataError."""
    try:
        processor = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises a bare Exception
        raise DataError(
            f"{path} is not a Hugging Face tokenizer.json, or is damaged ({error}); copy it again"
        ) from error
    processor.no_padding()
    processor.no_truncation()
    return processor


class HuggingFaceTokenizer:
    """A `tokenizer.json`. Padding, truncation and the template are switched off. Implements `Tokenizer`."""

    kind: TokenizerKind = "huggingface"

    def __init__(self, path: str | Path) -> None:
        """Raises DataError where the file is damaged or has no end-of-document symbol."""
        self.path = str(path)
        content = Path(path).read_bytes()
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.processor = read_tokenizer_json(content, self.path)
        self.processor.encode_special_tokens = True  # a literal "<s>" in the text is text
        self.vocab_size = 1 + max(self.processor.get_vocab(with_added_tokens=True).values())
        self.eod_id = self._end_of_document_id()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Raises DataError on a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text. The library sets its own number of threads (RAYON_NUM_THREADS), not `num_threads`."""
        for text in texts:
            check_unicode(text)
        return encode_in_slices(texts, None, self._encode)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Raises DataError on an id beyond the vocabulary."""
        return self.processor.decode(check_ids(ids, self.vocab_size, self.path), skip_special_tokens=True)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.processor.encode_batch_fast(texts, add_special_tokens=False)]

    def _end_of_document_id(self) -> int:
        for symbol in _END_SYMBOLS:
            token_id = self.processor.token_to_id(symbol)
            if token_id is None:
                continue
            if token_id in self.encode(symbol):
                raise DataError(
                    f"{self.path} encodes a literal {symbol} in a text as the end of a document; "
                    'mark it `"special": true` in the file\'s added_tokens'
                )
            return token_id
        raise DataError(
            f"{self.path} has no symbol to end a document with; add one of {', '.join(_END_SYMBOLS)} to its "
            "added tokens"
        )
