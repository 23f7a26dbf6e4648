"""`megagpt evaluate CHECKPOINT`: loss and perplexity of a checkpoint on held-out text, in one process.

A model trained in bf16 is evaluated in bf16, any other in fp32.

In: a checkpoint of any layout and an indexed dataset (by default the run's own). Out: numbers on standard output.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple, get_args

import torch

from megagpt.checkpoint.read import find_checkpoint, read_manifest
from megagpt.config import RunConfig
from megagpt.config_file import load_config
from megagpt.data.check import check_dataset
from megagpt.data.cli import positive_int
from megagpt.data.entropy import count_labels, unigram_entropy
from megagpt.data.indexed import IndexedDataset
from megagpt.data.samples import SampleIndex
from megagpt.data.splits import Split
from megagpt.data.stream import BatchStream
from megagpt.errors import ConfigError, DataError
from megagpt.inference.model import InferenceModel, load_for_inference
from megagpt.training.metrics import perplexity


class HeldOutResult(NamedTuple):
    """Loss of a model on the first samples of a split."""

    loss: float  # nats a token
    num_tokens: int
    unigram_entropy: float  # nats a token, of the same tokens


def main(argv: list[str]) -> int:
    """Run the verb; errors are raised as MegagptError for the caller to print."""
    options = _parser().parse_args(argv)
    folder = find_checkpoint(options.checkpoint)
    config = load_config(str(folder / "config.toml"), []).config
    data_path = options.data or config.data.path
    if data_path is None:
        raise ConfigError(f"{folder / 'config.toml'} names no data.path; give --data PREFIX")
    trained_in_bf16 = read_manifest(folder).precision == "bf16"
    model = load_for_inference(folder, precision="bf16" if trained_in_bf16 else "fp32")
    samples = held_out_samples(model, config, data_path, options.split)
    result = evaluate_checkpoint(model, samples, config, options.max_samples, options.batch_size)
    print("\n".join(report(model, f"{options.split} split of {data_path}", result)))
    return 0


def report(model: InferenceModel, text: str, result: HeldOutResult) -> list[str]:
    """Lines for a person."""
    below = result.unigram_entropy - result.loss
    side = "below" if below >= 0 else "above"
    return [
        f"checkpoint       {model.folder} (step {model.manifest.step})",
        f"text             {text}: {result.num_tokens:,} tokens",
        f"loss             {result.loss:.4f} nats/token ({result.loss / math.log(2):.4f} bits/token)",
        f"perplexity       {perplexity(result.loss):.2f}",
        f"unigram entropy  {result.unigram_entropy:.4f} nats/token of the same text: the loss is {abs(below):.2f} nats "
        f"{side} it",
    ]


def held_out_samples(model: InferenceModel, config: RunConfig, data_path: str, split: Split) -> SampleIndex:
    """The samples of a split, checked against the model. Raises DataError."""
    dataset = IndexedDataset(data_path)
    check_dataset(dataset, model.tokenizer, model.spec.vocab_size)
    share = config.data.split[get_args(Split).index(split)]
    if share == 0:
        raise DataError(
            f"the run gave the {split} split no share (data.split = {list(config.data.split)}); choose another --split"
        )
    return SampleIndex(dataset, split, config.data.split, model.spec.sequence_length, config.run.seed)


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
        losses = model.chunk(batch, None, None)
        loss_sum += float((losses * batch.loss_mask).sum(dtype=torch.float64))
        num_tokens += int(batch.loss_mask.sum())
    counts = count_labels(samples, num_samples, model.spec.vocab_size, eod_id if separate else None)
    return HeldOutResult(loss_sum / num_tokens, num_tokens, unigram_entropy(counts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megagpt evaluate", description="Loss and perplexity of a checkpoint on held-out text.", allow_abbrev=False
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint folder or a run folder")
    parser.add_argument("--data", metavar="PREFIX", help="indexed dataset (default: the run's own data.path)")
    parser.add_argument("--split", choices=get_args(Split), default="valid", help="default: valid")
    parser.add_argument("--max-samples", type=positive_int, metavar="N", help="read the first N samples (default: all)")
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, metavar="N", help="sequences at a time (default: 8)"
    )
    return parser
