"""Does a dataset belong to this run? In: a dataset, the tokenizer, the vocabulary. Out: nothing, or a DataError."""

import numpy as np

from megagpt.data.indexed import IndexedDataset
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer

_DOCUMENTS_LOOKED_AT = 1000


def check_dataset(dataset: IndexedDataset, tokenizer: Tokenizer | None, vocab_size: int) -> None:
    """Check tokenizer, ids and document ends; `vocab_size` is the model's, before padding.

    The fingerprint is compared where both are known (Megatron's own datasets carry none). Whether documents end with
    the end-of-document id is looked up in at most 1000 documents, evenly spread. Raises DataError.
    """
    if tokenizer is not None and dataset.fingerprint not in (None, tokenizer.fingerprint):
        raise DataError(
            f"dataset {dataset.prefix} was built with another tokenizer (sha256 {dataset.fingerprint}) than "
            f"{tokenizer.path} (sha256 {tokenizer.fingerprint}); rebuild the dataset with this tokenizer, or set "
            "tokenizer.path to the one it was built with"
        )
    highest = dataset.max_token_id()
    if highest >= vocab_size:
        raise DataError(
            f"dataset {dataset.prefix} has token id {highest}, beyond the vocabulary of {vocab_size} (ids 0 to "
            f"{vocab_size - 1}); set model.vocab_size to at least {highest + 1}, or rebuild it with the run's tokenizer"
        )
    if tokenizer is not None:
        _check_document_ends(dataset, tokenizer)


def share_of_ended_documents(dataset: IndexedDataset, eod_id: int) -> float:
    """Share of documents whose last token is `eod_id`, among at most 1000 that are not empty, evenly spread."""
    looked_at = np.unique(np.linspace(0, len(dataset) - 1, _DOCUMENTS_LOOKED_AT, dtype=np.int64))
    ends = dataset.offsets_at(looked_at + 1)
    ends = ends[ends > dataset.offsets_at(looked_at)]
    ended = [int(dataset.tokens(int(end) - 1, int(end))[0]) == eod_id for end in ends]
    return sum(ended) / len(ended) if ended else 0.0


def _check_document_ends(dataset: IndexedDataset, tokenizer: Tokenizer) -> None:
    share = share_of_ended_documents(dataset, tokenizer.eod_id)
    if share < 1:
        raise DataError(
            f"in dataset {dataset.prefix} only {share:.1%} of the documents looked at end with the end-of-document id "
            f"{tokenizer.eod_id} of {tokenizer.path}; rebuild it (with Megatron's script: --append-eod)"
        )
