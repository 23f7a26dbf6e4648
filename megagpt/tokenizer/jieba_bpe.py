"""Jieba-BPE, the tokenizer of ModelScope's GPT-3 1.3B and larger: a `tokenizer.json` applied to one word at a time.

In: the file. Out: the ids that ModelScope's JiebaBPETokenizer gives. jieba cuts the text into words, each space and
newline being one too, and BPE never joins two. Characters such as "<" stand alone, so a literal `<sep>` is text.
"""

import hashlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megagpt.errors import DataError
from megagpt.tokenizer.checks import check_ids, check_unicode
from megagpt.tokenizer.hf import read_tokenizer_json
from megagpt.tokenizer.protocol import END_OF_DOCUMENT, TokenizerKind
from megagpt.tokenizer.slices import encode_in_slices

SEPARATOR = "<sep>"  # ModelScope ends a fine-tuning text with it
NEWLINE = "\n"
SYMBOLS = (END_OF_DOCUMENT, SEPARATOR, NEWLINE)  # what ModelScope looks up in the vocabulary
# jieba cuts the text at every character outside this set before it looks for words, "\r\n" being one such place.
WORD_START = re.compile("(?<=[^\u4e00-\u9fd5a-zA-Z0-9+#&._%\\-\\r])")
_MAX_CACHE_SIZE = 1 << 20  # in characters, a word counting 16 more: some 58,000 Chinese words, 15 MB


class JiebaBpeTokenizer:
    """A Jieba-BPE `tokenizer.json`. Padding, truncation and the template are switched off. Implements `Tokenizer`."""

    kind: TokenizerKind = "jieba-bpe"

    def __init__(self, path: str | Path) -> None:
        """Raises DataError where the file is damaged or is no Jieba-BPE tokenizer, or jieba is not installed."""
        self.path = str(path)
        content = Path(path).read_bytes()
        self.processor = read_tokenizer_json(content, self.path)
        vocabulary = self.processor.get_vocab(with_added_tokens=True)
        missing = [symbol for symbol in SYMBOLS if symbol not in vocabulary]
        if missing:
            raise DataError(
                f"{path} is not a Jieba-BPE tokenizer: its vocabulary lacks {', '.join(map(repr, missing))}; name the "
                f"tokenizer.json of such a model, or write huggingface:{path}"
            )
        self.vocab_size = 1 + max(vocabulary.values())
        self.eod_id: int = vocabulary[END_OF_DOCUMENT]
        self._separator_id: int = vocabulary[SEPARATOR]
        self._segmenter, words_fingerprint = _load_jieba(self.path)
        self.fingerprint = hashlib.sha256(f"{self.kind}\0{words_fingerprint}\0".encode() + content).hexdigest()
        self._ids_of_word: dict[str, list[int]] = {}
        self._cache_size = 0

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Raises DataError on a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, on one thread whatever `num_threads`: jieba is Python code."""
        for text in texts:
            check_unicode(text)
        return encode_in_slices(texts, WORD_START, self._encode)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Raises DataError on an id beyond the vocabulary."""
        controls = (self.eod_id, self._separator_id)
        plain = [token_id for token_id in check_ids(ids, self.vocab_size, self.path) if token_id not in controls]
        return self.processor.decode(plain, skip_special_tokens=True)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """BPE sees one word at a time, so each word needs to be encoded once."""
        rows = [list(self._segmenter.cut(text)) for text in texts]
        known = self._ids_of_word
        new = _new_words(rows, known)
        self._cache_size += sum(map(len, new)) + 16 * len(new)
        if self._cache_size > _MAX_CACHE_SIZE:
            known = self._ids_of_word = {}  # another thread may still read the old one
            self._cache_size = 0
            new = _new_words(rows, known)
        encodings = self.processor.encode_batch_fast(
            [[word] for word in new], is_pretokenized=True, add_special_tokens=False
        )
        known.update((word, encoding.ids) for word, encoding in zip(new, encodings, strict=True))
        return [[token_id for word in words for token_id in known[word]] for words in rows]


def _new_words(rows: list[list[str]], known: dict[str, list[int]]) -> list[str]:
    return list({word: None for words in rows for word in words if word not in known})


def _load_jieba(path: str) -> tuple[Any, str]:
    """jieba's word segmenter with its own dictionary, and what decides its words: its version and dictionary.

    The dictionary is always built from jieba's file. jieba itself reads a copy that lies in the temporary folder, made
    by whichever version of jieba ran there first.
    """
    try:
        with warnings.catch_warnings():  # jieba 0.42.1 has escapes that Python 3.12 warns of
            warnings.simplefilter("ignore")
            jieba = importlib.import_module("jieba")
    except ImportError as error:
        raise DataError(
            f"{path} is a Jieba-BPE tokenizer, which needs jieba ({error}); install it: pip install 'megagpt[jieba]'"
        ) from None
    logging.getLogger("jieba").setLevel(logging.INFO)
    segmenter = jieba.Tokenizer()
    with segmenter.get_dict_file() as file:
        dictionary = file.read()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(io.BytesIO(dictionary))
    segmenter.initialized = True
    return segmenter, f"{jieba.__version__} {hashlib.sha256(dictionary).hexdigest()}"
