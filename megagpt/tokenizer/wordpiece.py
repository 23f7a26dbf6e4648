"""BERT WordPiece (`vocab.txt`) as a Tokenizer. In: the vocabulary, a piece a line. Out: the ids BERT's tokenizer gives.

The text is cleaned, lower-cased and stripped of accents (kind "wordpiece"; not "wordpiece-cased"), split at whitespace,
punctuation and around every Chinese character, and each word is taken apart into the longest pieces from the left.
So decoding gives back words, not the text: spacing, case and characters outside the vocabulary are lost.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from megagpt.errors import DataError
from megagpt.tokenizer.checks import check_ids, check_unicode
from megagpt.tokenizer.protocol import TokenizerKind
from megagpt.tokenizer.slices import encode_in_slices

CONTINUATION = "##"
MAX_WORD_CHARACTERS = 100  # of BERT; a longer word is [UNK]
UNKNOWN = "[UNK]"
END = "[SEP]"  # what BERT's tokenizer puts after a text
# Symbols that stand for no text. [UNK] is not among them: it stands for text that the vocabulary cannot express.
CONTROLS = ("[PAD]", "[CLS]", END, "[MASK]")
# Words end before these whatever stands there: whitespace, and Chinese characters, which are words of their own.
WORD_BREAK = re.compile("[ \\t\\n\\r\u4e00-\u9fff]")
# The spaces that decoding leaves out: those between Chinese characters, punctuation and other symbols.
_NO_SPACE = r"(?<=[\p{Han}\p{P}\p{S}]) (?=[\p{Han}\p{P}\p{S}])"


class WordPieceTokenizer:
    """A BERT vocabulary. Implements `Tokenizer`.

    Ids are those of transformers' BertTokenizer without the [CLS] and [SEP] that it puts around a text; a literal
    "[SEP]" in the text is text.
    """

    def __init__(self, path: str | Path, lowercase: bool = True) -> None:
        """Raises DataError where the file is not such a vocabulary."""
        self.path = str(path)
        self.kind: TokenizerKind = "wordpiece" if lowercase else "wordpiece-cased"
        content = Path(path).read_bytes()
        self.fingerprint = hashlib.sha256(f"{self.kind}\0".encode() + content).hexdigest()
        pieces = _read_vocabulary(content, self.path)
        self.vocab_size = len(pieces)
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        self.processor = _build(vocabulary, lowercase)
        self.eod_id = vocabulary[END]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Raises DataError on a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text. The library sets its own number of threads (RAYON_NUM_THREADS), not `num_threads`."""
        for text in texts:
            check_unicode(text)
        return encode_in_slices(texts, WORD_BREAK, self._encode)

    def decode(self, ids: Sequence[int]) -> str:
        """The words of `ids` with spaces between them, but not where both neighbours are Chinese or punctuation.

        Raises DataError on an id beyond the vocabulary.
        """
        return self.processor.decode(check_ids(ids, self.vocab_size, self.path), skip_special_tokens=True)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.processor.encode_batch_fast(texts, add_special_tokens=False)]


def _read_vocabulary(content: bytes, path: str) -> list[str]:
    """The pieces, by id. Lines end as in Python's text files. Raises DataError."""
    try:
        lines = io.StringIO(content.decode("utf-8"), newline=None).readlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a vocab.txt: byte {error.start} is not UTF-8; copy it again, or name another file"
        ) from error
    pieces = [line.rstrip("\n") for line in lines]
    missing = [symbol for symbol in (UNKNOWN, END) if symbol not in pieces]
    if missing:
        raise DataError(
            f"{path} is not BERT's vocab.txt: it has no line {' and no line '.join(missing)}; name the vocabulary file"
        )
    return pieces


def _build(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    processor = tokenizers.Tokenizer(
        models.WordPiece(
            vocabulary,
            unk_token=UNKNOWN,
            max_input_chars_per_word=MAX_WORD_CHARACTERS,
            continuing_subword_prefix=CONTINUATION,
        )
    )
    # accents go where letters become lower case, as in BERT
    processor.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    processor.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    processor.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix=CONTINUATION),
            decoders.Fuse(),
            decoders.Replace(tokenizers.Regex(_NO_SPACE), ""),
        ]
    )
    processor.add_special_tokens([symbol for symbol in CONTROLS if symbol in vocabulary])
    processor.encode_special_tokens = True  # a literal "[SEP]" in the text is text
    return processor
