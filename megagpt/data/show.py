"""A step's batch as a person reads it. In: a batch stream, a step, a tokenizer. Out: text."""

from collections.abc import Callable

from megagpt.data.stream import BatchStream, StepSlice
from megagpt.data.token_text import decode_with_ends
from megagpt.tokenizer.protocol import Tokenizer

_SHOWN_CHARACTERS = 400


def show_batch(
    stream: BatchStream, step: StepSlice, tokenizer: Tokenizer, corpus_of: Callable[[int], str] | None = None
) -> str:
    """Every sequence of the rank's micro-batches, decoded, document ends marked, long texts cut in the middle.

    `corpus_of` names the corpus of a sample, where there are several.
    """
    micro_batches = stream.micro_batches(step)
    block = step.micro_batch_size * step.num_micro_batches
    first = step.first_sample + stream.data_rank * block
    lines = [
        f"data rank {stream.data_rank} of {stream.data_ranks}: samples {first} to {first + block - 1}, "
        f"{len(micro_batches)} micro-batches of {step.micro_batch_size} x {stream.sequence_length} tokens"
    ]
    for number, batch in enumerate(micro_batches):
        for row in range(step.micro_batch_size):
            ids = batch.tokens[row].tolist()
            counted = int(batch.loss_mask[row].sum())
            sample = first + number * step.micro_batch_size + row
            source = "" if corpus_of is None else f" from {corpus_of(sample)}"
            lines.append(
                f"\n--- micro-batch {number}, sequence {row} (sample {sample}{source}): "
                f"{ids.count(tokenizer.eod_id)} document ends, {counted} labels count"
            )
            lines.append(_shorten(decode_with_ends(tokenizer, ids)))
    return "\n".join(lines)


def _shorten(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} …[{len(text) - 2 * half} characters]… {text[-half:]}"
