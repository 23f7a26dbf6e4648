"""`megagpt evaluate CHECKPOINT`: loss and perplexity of a checkpoint on held-out text, in one process.

A model trained in bf16 is evaluated in bf16, any other in fp32.

In: a checkpoint of any layout and an indexed dataset (by default the run's own). Out: numbers on standard output.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from megagpt.checkpoint.read import find_checkpoint
from megagpt.config import DataSection, RunConfig
from megagpt.config_file import load_config
from megagpt.data.cli import positive_int
from megagpt.data.corpora import Corpus, corpus_entries, open_corpora
from megagpt.data.entropy import count_labels, unigram_entropy
from megagpt.data.samples import SampleIndex
from megagpt.data.splits import Split
from megagpt.data.stream import BatchStream
from megagpt.errors import ConfigError, DataError
from megagpt.formats.checkpoint_source import CheckpointSource
from megagpt.inference.model import InferenceModel, load_for_inference
from megagpt.training.metrics import perplexity


class HeldOutResult(NamedTuple):
    """Loss of a model on the first samples of a split."""

    loss_sum: float  # nats
    num_tokens: int
    label_counts: NDArray[np.int64]  # [V] of the same tokens

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.loss_sum / self.num_tokens


def main(argv: list[str]) -> int:
    """Run the verb; errors are raised as MegagptError for the caller to print."""
    options = _parser().parse_args(argv)
    folder = find_checkpoint(options.checkpoint)
    config = load_config(str(folder / "config.toml"), []).config
    entries = corpus_entries(config.data)
    if options.data:
        entries = corpus_entries(DataSection(path=options.data, split=config.data.split))
    if not entries:
        raise ConfigError(f"{folder / 'config.toml'} names no data.path; give --data PREFIX")
    source = CheckpointSource(folder)
    model = load_for_inference(source, precision="bf16" if source.manifest.precision == "bf16" else "fp32")
    assert model.tokenizer is not None, "a checkpoint of training has its tokenizer"
    corpora = open_corpora(entries, model.tokenizer, model.spec.vocab_size, config.data.index_folder)
    results = [
        evaluate_checkpoint(
            model,
            held_out_samples(model, config, corpus, options.split),
            config,
            options.max_samples,
            options.batch_size,
        )
        for corpus in corpora
    ]
    print(f"checkpoint       {model.folder} (step {source.manifest.step})")
    for corpus, result in zip(corpora, results, strict=True):
        print("\n".join(report(f"{options.split} split of {corpus.entry.path}", result)))
    if len(results) > 1:
        print("\n".join(report(f"{options.split} split of all {len(results)} corpora", together(results))))
    return 0


def report(text: str, result: HeldOutResult) -> list[str]:
    """Lines for a person."""
    entropy = unigram_entropy(result.label_counts)
    below = entropy - result.loss
    side = "below" if below >= 0 else "above"
    return [
        f"text             {text}: {result.num_tokens:,} tokens",
        f"loss             {result.loss:.4f} nats/token ({result.loss / math.log(2):.4f} bits/token)",
        f"perplexity       {perplexity(result.loss):.2f}",
        f"unigram entropy  {entropy:.4f} nats/token of the same text: the loss is {abs(below):.2f} nats {side} it",
    ]


def together(results: list[HeldOutResult]) -> HeldOutResult:
    """The loss over the tokens of all."""
    return HeldOutResult(
        sum(result.loss_sum for result in results),
        sum(result.num_tokens for result in results),
        np.sum([result.label_counts for result in results], axis=0),
    )


def held_out_samples(model: InferenceModel, config: RunConfig, corpus: Corpus, split: Split) -> SampleIndex:
    """The samples of a split of a corpus. Raises DataError."""
    if not corpus.has(split):
        raise DataError(
            f"the run gave the {split} split of {corpus.entry.name} no share (data.split = "
            f"{list(corpus.entry.split)}); choose another --split"
        )
    return corpus.samples(split, model.spec.sequence_length, config.run.seed)


@torch.inference_mode()
def evaluate_checkpoint(
    model: InferenceModel, samples: SampleIndex, config: RunConfig, max_samples: int | None, batch_size: int
) -> HeldOutResult:
    """Σ loss / Σ tokens over the first `max_samples` samples (None: one pass), `batch_size` at a time."""
    assert model.tokenizer is not None, "a dataset was checked against the tokenizer"
    num_samples = min(samples.samples_per_epoch, max_samples or samples.samples_per_epoch)
    eod_id, separate = model.tokenizer.eod_id, config.data.separate_documents
    stream = BatchStream(samples, model.spec.sequence_length, eod_id, separate, 0, 1)
    loss_sum, num_tokens = 0.0, 0
    for batch in stream.evaluation_batches(num_samples, batch_size):
        batch = batch.to(model.device)
        losses = model.chunk.token_losses(batch)
        loss_sum += float((losses * batch.loss_mask).sum(dtype=torch.float64))
        num_tokens += int(batch.loss_mask.sum())
    counts = count_labels(samples, num_samples, model.spec.vocab_size, eod_id if separate else None)
    return HeldOutResult(loss_sum, num_tokens, counts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megagpt evaluate", description="Loss and perplexity of a checkpoint on held-out text.", allow_abbrev=False
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint folder or a run folder")
    parser.add_argument("--data", metavar="PREFIX", help="indexed dataset (default: the run's own)")
    parser.add_argument("--split", choices=get_args(Split), default="valid", help="default: valid")
    parser.add_argument("--max-samples", type=positive_int, metavar="N", help="read the first N samples (default: all)")
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, metavar="N", help="sequences at a time (default: 8)"
    )
    return parser
