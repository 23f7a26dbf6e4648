"""Proof that transformers gives our numbers from an exported folder: logits and token ids, compared one by one.

In: our model and tokenizer, the folder. Out: what was compared and the largest difference; raises where they differ.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megagpt.errors import ExportError
from megagpt.export.exporter import Proof
from megagpt.export.probes import LOGITS_TOLERANCE, compare_ids, compare_logits, probe_texts
from megagpt.inference.model import InferenceModel
from megagpt.tokenizer import Tokenizer


def verify(ours: InferenceModel, tokenizer: Tokenizer, folder: Path) -> Proof:
    """Load `folder` with transformers and compare. Raises ExportError with the first disagreement."""
    import transformers

    with _loading():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    theirs = theirs.to(ours.device).eval()
    num_logits, difference = compare_logits(ours, lambda tokens: theirs(input_ids=tokens).logits, "transformers")
    return Proof(num_logits, difference, LOGITS_TOLERANCE, verify_tokenizer(tokenizer, folder))


def verify_tokenizer(tokenizer: Tokenizer, folder: Path) -> int:
    """Compare the token ids of many texts; returns how many. Raises ExportError with the first disagreement."""
    import transformers

    with _loading():
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = probe_texts(tokenizer)
    encoded = theirs(texts, verbose=False)  # it would warn of texts longer than the context
    if set(encoded) != {"input_ids", "attention_mask"}:
        raise ExportError(f"the exported tokenizer gives {sorted(encoded)}, not input_ids and attention_mask alone")
    compare_ids(tokenizer, texts, encoded["input_ids"], "transformers")
    _compare_decoding(tokenizer, theirs, texts, encoded["input_ids"])
    if theirs.eos_token_id != tokenizer.eod_id:
        raise ExportError(f"eos_token_id is {theirs.eos_token_id} in transformers, ours is {tokenizer.eod_id}")
    return len(texts)


def verify_names(folder: Path, found: dict[str, tuple[int, ...]]) -> None:
    """Raise ExportError unless tensors of these names and shapes are what the folder's config.json asks for."""
    import transformers

    with _loading(), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    tied = set(model._tied_weights_keys or ())
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    if found != wanted:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))[0]
        raise ExportError(
            f"{wrong} has shape {found.get(wrong)} in the files, transformers' model of this config.json wants "
            f"{wanted.get(wrong)}"
        )


def _compare_decoding(ours: Tokenizer, theirs: Any, texts: list[str], rows: list[list[int]]) -> None:
    for text, ids in zip(texts, rows, strict=True):
        back, ours_back = theirs.decode(ids, skip_special_tokens=True), ours.decode(ids)
        if back != ours_back:
            raise ExportError(f"the ids of {text!r} decode to {back!r} in transformers, ours to {ours_back!r}")


@contextmanager
def _loading() -> Iterator[None]:
    """Within, whatever transformers raises means that the folder cannot be loaded; it shows no progress bars."""
    import transformers

    logging = transformers.utils.logging
    bars_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        raise ExportError(f"transformers {transformers.__version__} cannot load the export: {error}") from error
    finally:
        if bars_shown:
            logging.enable_progress_bar()
