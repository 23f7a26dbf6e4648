"""Tokens one after another. In: a model, prompts as ids, settings. Out: one step for each new token, as it is chosen.

A prompt stands at the start of the context as it is. In training a document follows the end-of-document token of the
one before it, so an empty prompt starts from that token: the model then begins a document of its own.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megagpt.errors import GenerationError
from megagpt.inference.model import InferenceModel
from megagpt.inference.sampling import choose, make_generator
from megagpt.inference.settings import SamplingSettings

# eod: the model ended the document; length: max_new_tokens were made; context: no position is left
StopReason = Literal["eod", "length", "context"]


class GenerationStep(NamedTuple):
    """One new token of each row."""

    ids: list[int]  # a row that ended at an earlier step repeats the end-of-document id
    stops: list[StopReason | None]  # why the row ended, at this step or before; None: it goes on


def generate(
    model: InferenceModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings, use_cache: bool = True
) -> Iterator[GenerationStep]:
    """Continue prompts of equal length, given as ids; the prompts themselves are not repeated in the steps.

    Ends when every row has: at the end-of-document id (which is given out), after `settings.max_new_tokens`, or when
    the next token would need a position beyond the context. With the cache the prompt is read in one pass and each
    new token in one of its own; without it everything is computed anew for each token, and greedy choices are the same.

    Raises GenerationError, at the call, for a prompt longer than the context, ids that do not exist or lengths that
    differ; while generating, for logits that are not finite.
    """
    return _steps(model, check_prompts(model, prompts).to(model.device), settings, use_cache)


def check_prompts(model: InferenceModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The prompts as [B, S] int64; an empty one becomes the end-of-document id. Raises GenerationError."""
    if not prompts:
        raise GenerationError("no prompts were given; give one or more, an empty one to begin a new document")
    eod = end_of_document_id(model)
    if any(not prompt for prompt in prompts) and eod is None:
        raise GenerationError(
            f"an empty prompt starts from the end-of-document token, but {model.folder} has no tokenizer to name it; "
            "give a prompt"
        )
    rows = [list(prompt) if prompt else [eod] for prompt in prompts]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        raise GenerationError(f"prompts have lengths {lengths} in tokens; give prompts of one length, or one at a time")
    context = model.spec.sequence_length
    if lengths[0] > context:
        raise GenerationError(
            f"the prompt has {lengths[0]} tokens and the model's context is {context}; "
            f"shorten the prompt by {lengths[0] - context} tokens or more"
        )
    for row in rows:
        for token_id in row:
            if token_id is None or not 0 <= token_id < model.num_ids:
                raise GenerationError(
                    f"token id {token_id} in the prompt does not exist; the model has ids 0 to {model.num_ids - 1}: "
                    "encode the prompt with the checkpoint's own tokenizer"
                )
    return torch.tensor(rows, dtype=torch.int64)


def end_of_document_id(model: InferenceModel) -> int | None:
    """The id that ends a document, None where the checkpoint has no tokenizer."""
    return None if model.tokenizer is None else model.tokenizer.eod_id


def _steps(
    model: InferenceModel, tokens: Tensor, settings: SamplingSettings, use_cache: bool
) -> Iterator[GenerationStep]:
    """The steps of `generate` for checked prompts [B, S] on the model's device."""
    batch_size, prompt_length = tokens.shape
    # the last token may be predicted from a full context: it needs no position of its own
    num_steps = min(settings.max_new_tokens, model.spec.sequence_length - prompt_length + 1)
    last_stop: StopReason = "length" if num_steps == settings.max_new_tokens else "context"
    eod = end_of_document_id(model)
    generator = make_generator(settings, model.device)
    caches = model.make_caches(batch_size, prompt_length + num_steps - 1) if use_cache else None
    stops: list[StopReason | None] = [None] * batch_size
    num_cached = 0
    for step in range(num_steps):
        logits = model.logits(tokens[:, num_cached:], num_cached, caches)[:, -1, : model.num_ids]
        if use_cache:
            num_cached = tokens.shape[1]
        _check_finite(logits, model, tokens.shape[1])
        chosen = choose(logits, tokens, settings, generator)
        for row, stop in enumerate(stops):
            if stop == "eod":
                assert eod is not None
                chosen[row] = eod
            elif int(chosen[row]) == eod:
                stops[row] = "eod"
            elif step == num_steps - 1:
                stops[row] = last_stop
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        yield GenerationStep(chosen.tolist(), list(stops))
        if None not in stops:
            return


def _check_finite(logits: Tensor, model: InferenceModel, position: int) -> None:
    if not bool(logits.isfinite().all()):
        raise GenerationError(
            f"the logits of token {position} are not finite: the training behind {model.folder} diverged; "
            "use an earlier checkpoint"
        )
