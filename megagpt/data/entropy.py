"""Unigram entropy of held-out tokens: what a model that knows only how often each token occurs cannot go below.

In: token counts or samples. Out: nats per token.
"""

import numpy as np
from numpy.typing import NDArray

from megagpt.data.samples import SampleIndex

_BLOCK_TOKENS = 1 << 20


def unigram_entropy(token_counts: NDArray) -> float:
    """H = -Σ p(t) ln p(t) in nats per token, p the frequencies in `token_counts` [V].

    It is the loss, on these very tokens, of the best model that ignores all context: one that has their frequencies.
    A loss below it shows that a model uses context.
    """
    counts = np.asarray(token_counts, dtype=np.float64)
    total = counts.sum()
    assert total > 0, "no tokens were counted"
    frequencies = counts[counts > 0] / total
    return float(-(frequencies * np.log(frequencies)).sum()) + 0.0


def count_labels(
    samples: SampleIndex, num_samples: int, vocab_size: int, separate_documents_eod_id: int | None = None
) -> NDArray[np.int64]:
    """How often each id is a label that counts in the first `num_samples` samples: [vocab_size].

    Give `separate_documents_eod_id` where documents are kept apart: the label after an end of document does not count.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    block = max(1, _BLOCK_TOKENS // samples.sequence_length)
    for start in range(0, num_samples, block):
        tokens = samples.tokens_of_many(np.arange(start, min(start + block, num_samples)))
        labels = tokens[:, 1:]
        if separate_documents_eod_id is not None:
            labels = labels[tokens[:, :-1] != separate_documents_eod_id]
        counts += np.bincount(labels.reshape(-1), minlength=vocab_size)
    return counts
