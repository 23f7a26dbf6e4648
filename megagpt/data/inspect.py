"""What is in a dataset, in words. In: a dataset, perhaps its tokenizer. Out: lines of text."""

import numpy as np

from megagpt.data.check import check_dataset, share_of_ended_documents
from megagpt.data.indexed import IndexedDataset
from megagpt.data.sidecar import Sidecar
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer

_SHOWN_TOKENS = 200


def inspect_dataset(dataset: IndexedDataset, tokenizer: Tokenizer | None, document: int) -> list[str]:
    """Counts, id type, tokenizer, sources, and the beginning of `document`: its text, or its ids without a tokenizer.

    With a tokenizer the dataset is checked against it (`check_dataset`). Raises DataError.
    """
    if not 0 <= document < len(dataset):
        raise DataError(
            f"document {document} does not exist in {dataset.prefix}: it has documents 0 to {len(dataset) - 1}"
        )
    lengths = dataset.document_lengths
    quartiles = ", ".join(f"{int(value)}" for value in np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1)))
    megabytes = dataset.num_tokens * dataset.dtype.itemsize / 1e6
    lines = [
        f"dataset        {dataset.prefix} ({megabytes:.2f} MB of {dataset.dtype})",
        f"documents      {len(dataset)} in {len(dataset.sequence_lengths)} sequences",
        f"tokens         {dataset.num_tokens}; largest id {dataset.max_token_id()}",
        f"document size  {quartiles} tokens (least, quartiles, most)",
        *_sidecar_lines(dataset),
    ]
    if tokenizer is not None:
        check_dataset(dataset, tokenizer, tokenizer.vocab_size)
        lines.append(f"belongs to     {tokenizer.path}: yes")
    ids = dataset.document(document)[:_SHOWN_TOKENS].tolist()
    shown = f"document {document}, first {len(ids)} of {int(lengths[document])} tokens:"
    return [*lines, shown, tokenizer.decode(ids) if tokenizer is not None else " ".join(map(str, ids))]


def _sidecar_lines(dataset: IndexedDataset) -> list[str]:
    sidecar: Sidecar | None = dataset.sidecar
    if sidecar is None:
        return ["tokenizer      unknown: there is no .json beside the dataset (Megatron writes none)"]
    ended = share_of_ended_documents(dataset, sidecar.eod_id)
    lines = [
        f"tokenizer      {sidecar.tokenizer_kind}, {sidecar.vocab_size} ids, sha256 {sidecar.fingerprint}",
        f"document ends  id {sidecar.eod_id}, at the end of {ended:.1%} of the documents looked at",
        f"text           {sidecar.text_bytes / 1e6:.2f} MB in UTF-8",
    ]
    for source in sidecar.sources:
        size = "size unknown" if source.size_bytes is None else f"{source.size_bytes} bytes"
        lines.append(f"source         {source.path} ({size})")
    lines += [f"left out       {count}: {reason}" for reason, count in sidecar.skipped.items()]
    return lines
