"""The datatrove steps of the Chinese recipe: what datatrove has is set up for Chinese, what it lacks is here.

datatrove's own word splitter for Chinese needs spaCy and jieba; for finding near-duplicates characters do as well.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megagpt.data.chinese_text import Form, Rules, garbled_share, normalize, reason_to_drop
from megagpt.data.dataset_output import full_disk_named
from megagpt.data.datatrove_base import Document, DocumentsPipeline
from megagpt.errors import DataError

try:
    from datatrove.pipeline.dedup import ExactDedupConfig, MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer
except ImportError as error:
    raise DataError(
        f"the Chinese recipe needs a package that cannot be imported here ({error}); install all it needs with: "
        "pip install 'megagpt[clean]' (in this repository: pip install -e '.[clean]')"
    ) from error

_TOKENS = re.compile(r"[a-z0-9]+|[^\W_]")
_LETTERS = re.compile(r"[^\W_]+")
_SIGNATURE_BLOCK = 4096
_KEPT = "the tasks that are done are kept: the same command, run again, goes on after them"

# 5 characters are about 3 words. 14 bands of 8 hashes: of two documents that share the part s of their runs of 5
# characters, 1 - (1 - s^8)^14 are found: 21 % at 0.6, 56 % at 0.7, 92 % at 0.8, 99.96 % at 0.9.
MINHASH = MinhashConfig(
    n_grams=5,
    num_buckets=14,
    hashes_per_bucket=8,
    norm_config=TextNormConfig(norm_unicode_diacritics=False),  # the texts are in NFC; it would take Hangul apart
    hash_config=HashConfig(precision=64, hash_fc="sha1"),  # datatrove 0.10 cannot call xxhash from version 4 on
)


class ChineseCleaner(BaseFilter):
    """Brings each document into its normal form, and drops those that break a rule, with the rule's name as reason."""

    name = "🀄 Chinese text"

    def __init__(
        self, rules: Rules, form: Form, simplified: bool, exclusion_writer: "TaskWriter | None" = None
    ) -> None:
        """`simplified`: traditional characters become simplified ones; raises DataError where OpenCC is missing."""
        super().__init__(exclusion_writer)
        self.rules = rules
        self.form: Form = form
        self.simplified = simplified
        self._converter: Any = None
        if simplified:
            _load_converter()

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Keep or drop; the document's text is replaced."""
        self.stat_update("characters_read", value=len(doc.text))
        if garbled_share(doc.text) > self.rules.max_garbled:
            return False, "garbled"
        doc.text = self._simplify(normalize(doc.text, self.form))
        self.stat_update("characters_normalized", value=len(doc.text))
        reason = reason_to_drop(doc.text, self.rules)
        return True if reason is None else (False, reason)

    def _simplify(self, text: str) -> str:
        if not self.simplified:
            return text
        if self._converter is None:  # made in the process that uses it: it cannot be pickled
            self._converter = _load_converter()
        return self._converter.convert(text)


class Characters(WordTokenizer):
    """Splits simplified text for shingles: each character of a script without spaces, each Latin word or number."""

    def word_tokenize(self, text: str) -> list[str]:
        """The characters and words of lower-case `text`, punctuation left out."""
        return _TOKENS.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Not used for signatures."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Not used for signatures."""
        raise NotImplementedError


class ChineseSignature(MinhashDedupSignature):
    """datatrove's MinHash signatures over runs of 5 characters, with bounded memory for documents of any length."""

    def __init__(self, output_folder: str) -> None:
        super().__init__(output_folder, MINHASH, language=Characters())

    def get_signature(self, shingles: NDArray[np.uint64]) -> list[list[int]]:
        """As datatrove's, which needs 2 KB of memory a shingle: minima of blocks are the minima of all."""
        blocks = [shingles[start : start + _SIGNATURE_BLOCK] for start in range(0, len(shingles), _SIGNATURE_BLOCK)]
        return np.min([super(ChineseSignature, self).get_signature(block) for block in blocks], axis=0).tolist()


class TaskReader(JsonlReader):
    """Reads what the same task of an earlier stage wrote: FOLDER/00003.jsonl.zst, or nothing where it wrote nothing.

    datatrove's reader would share the existing files out anew; duplicates are known by task and number, so each task
    must see its own.
    """

    name = "🐿 Jsonl of this task"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """This task's documents."""
        name = f"{rank:05d}.jsonl.zst"
        for document in self.read_files_shard([name] if self.data_folder.exists(name) else []):
            self.update_doc_stats(document)
            yield document


class TaskWriter(JsonlWriter):
    """Writes what `TaskReader` reads: Zstandard-compressed JSONL, a file a task."""

    name = "🐿 Jsonl of this task"

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), output_filename="${rank}.jsonl", compression="zstd")
        self._folder = str(folder)

    def write(self, document: Document, rank: int = 0, **kwargs: Any) -> None:
        """Write one document. Raises DataError where the disk is full."""
        with full_disk_named(self._folder, kept=_KEPT, choose="a folder"):
            super().write(document, rank, **kwargs)

    def close(self) -> None:
        """Write what is left, and close the files. Raises DataError where the disk is full."""
        with full_disk_named(self._folder, kept=_KEPT, choose="a folder"):
            super().close()

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        """datatrove's copies every field, which takes as long as compressing it."""
        return {"text": document.text, "id": document.id, "metadata": document.metadata}


def letters_of(document: Document) -> bytes:
    """What two documents must have in common to be the same: letters and digits, without case, spaces, punctuation."""
    return "".join(_LETTERS.findall(document.text.lower())).encode("utf-8")


EXACT = ExactDedupConfig(content_getter=letters_of)


def _load_converter() -> Any:
    try:
        import opencc
    except ImportError as error:
        raise DataError(
            f"--simplified needs the package opencc, which cannot be imported here ({error}); pip install opencc"
        ) from error
    return opencc.OpenCC("t2s")
