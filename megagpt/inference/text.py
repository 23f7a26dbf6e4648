"""Text from a model, as it becomes readable. In: a model, a prompt, settings. Out: pieces of text, characters whole."""

from collections.abc import Iterator
from typing import NamedTuple

from megagpt.errors import GenerationError
from megagpt.inference.generate import GenerationStep, StopReason, generate
from megagpt.inference.model import InferenceModel
from megagpt.inference.settings import SamplingSettings
from megagpt.tokenizer import StreamDecoder


class TextStep(NamedTuple):
    """What one new token adds to the text."""

    text: str  # the characters it completes, none while a character waits for its last bytes
    stop: StopReason | None  # why the text ends here; None: it goes on


def generate_text(
    model: InferenceModel, prompt: str, settings: SamplingSettings, use_cache: bool = True
) -> Iterator[TextStep]:
    """Continue a prompt; an empty one begins a new document. The prompt itself is not repeated.

    Raises GenerationError where `generate` does, or where the checkpoint has no tokenizer; DataError for a prompt that
    is not valid Unicode.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise GenerationError(
            f"{model.folder} has no tokenizer, so it cannot read a prompt or write text; "
            "train with tokenizer.path set, or generate from ids in Python (megagpt.inference.generate)"
        )
    return _decode(generate(model, [tokenizer.encode(prompt)], settings, use_cache), StreamDecoder(tokenizer))


def _decode(steps: Iterator[GenerationStep], decoder: StreamDecoder) -> Iterator[TextStep]:
    for step in steps:
        stop = step.stops[0]
        text = decoder.push(step.ids[0])
        yield TextStep(text + decoder.flush() if stop else text, stop)
