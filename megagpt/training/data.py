"""The data of a prepared run: training samples in the order of its phases, held-out samples. No communication.

In: plan, tokenizer, the phases of the checkpoint that the run continues from. Out: RunData.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megagpt.checkpoint.manifest import Manifest
from megagpt.data.blend import BlendedSamples
from megagpt.data.blend_history import Phase, continue_phases
from megagpt.data.corpora import Corpus, corpus_entries, open_corpora
from megagpt.data.entropy import count_labels, unigram_entropy
from megagpt.data.index_core import NOTE, index_core, is_native
from megagpt.data.samples import SampleIndex
from megagpt.errors import CheckpointError
from megagpt.parallel.launcher import launched_rank
from megagpt.plan import RunPlan
from megagpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Validation:
    """The held-out samples of one corpus that every evaluation of a run reads."""

    name: str
    samples: SampleIndex
    num_sequences: int  # the first ones of the split
    unigram_entropy: float  # of their labels, nats a token


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples of a run, corpus by corpus."""

    parts: tuple[Validation, ...]
    unigram_entropy: float  # of the labels of all parts together, nats a token


@dataclass(frozen=True)
class RunData:
    """What a run reads."""

    training: BlendedSamples
    validation: HeldOut | None  # None where no corpus has a validation split
    first_sample: int  # the first one that this session reads


def prepare_data(plan: RunPlan, tokenizer: Tokenizer, resume_from: tuple[Path, Manifest] | None) -> RunData:
    """Open and check the corpora, and their index at the sample where the run begins or goes on.

    Raises DataError, or CheckpointError where the checkpoint was trained on data that this configuration does not have.
    """
    config = plan.config
    say = (lambda text: print(text, file=sys.stderr)) if launched_rank() == 0 else (lambda text: None)
    entries = corpus_entries(config.data)
    corpora = open_corpora(entries, tokenizer, plan.spec.vocab_size, config.data.index_folder, say=say)
    first_sample = plan.step_batch(resume_from[1].step).first_sample if resume_from else 0
    phases = _phases(resume_from, first_sample, corpora, may_change=config.data.corpora is not None)
    length, seed = plan.spec.sequence_length, config.run.seed
    samples = {corpus.fingerprint: corpus.samples("train", length, seed) for corpus in corpora}
    training = BlendedSamples(phases, samples)
    if resume_from is None or resume_from[1].step < plan.num_steps:
        training.open_at(first_sample)
    return RunData(training, _held_out(plan, tokenizer, corpora), first_sample)


def describe_data(data: RunData, plan: RunPlan) -> list[str]:
    """Lines for a person: how much text, how often each corpus is read until the end of the run, what changes now."""
    training = data.training
    num_samples = plan.batches.total_tokens // training.sequence_length
    uses = training.uses(num_samples)
    if len(uses) == 1:
        lines = [f"data: {training.num_tokens:,} training tokens, {uses[0].epochs:.2f} epochs"]
    else:
        shares = training.phases[-1].shares
        lines = [f"data: {training.num_tokens:,} training tokens in {len(uses)} corpora"] + [
            f"  {use.name}: {100 * shares[use.name]:.4g} %, {use.num_samples:,} samples by the end of the run, "
            f"{use.epochs:.2f} epochs"
            for use in uses
        ]
    if len(training.phases) > 1:
        before, now = training.phases[-2:]
        new = "from here" if now.first_sample == data.first_sample else f"from sample {now.first_sample:,}"
        lines.append(f"  {new} on {now.describe()}; before: {before.describe()}")
    for samples in training.samples.values():
        for use in samples.store.uses if samples.store is not None else ():
            if use.path is not None:
                done = "built" if use.built else "found"
                lines.append(f"  index {use.path} ({use.num_bytes:,} bytes) {done} in {use.seconds:.2f} s")
    if not is_native(index_core()):
        lines.append(f"note: {NOTE}")
    return lines


def _phases(
    resume_from: tuple[Path, Manifest] | None, first_sample: int, corpora: tuple[Corpus, ...], may_change: bool
) -> tuple[Phase, ...]:
    shares = tuple(corpus.share for corpus in corpora)
    if resume_from is None:
        return continue_phases((), 0, shares, may_change)
    folder, manifest = resume_from
    try:
        if not manifest.phases:
            raise CheckpointError("it was written by a megagpt that had another order of samples")
        return continue_phases(manifest.phases, first_sample, shares, may_change)
    except CheckpointError as error:
        raise CheckpointError(
            f"the run cannot continue from {folder}: {error}. Restore these values, or choose another run.folder to "
            "start anew"
        ) from None


def _held_out(plan: RunPlan, tokenizer: Tokenizer, corpora: tuple[Corpus, ...]) -> HeldOut | None:
    """The first samples of every corpus that has a validation split, as many of each: weights do not matter here, so
    that the loss stays comparable when they change."""
    config = plan.config
    held_out = [corpus for corpus in corpora if corpus.has("valid")]
    if not held_out:
        return None
    most = config.evaluation.max_batches * config.train.batch_tokens // plan.spec.sequence_length
    eod_id = tokenizer.eod_id if config.data.separate_documents else None
    total = np.zeros(plan.spec.vocab_size, dtype=np.int64)
    parts = []
    for corpus in held_out:
        samples = corpus.samples("valid", plan.spec.sequence_length, config.run.seed)
        num_sequences = min(samples.samples_per_epoch, max(1, most // len(held_out)))
        counts = count_labels(samples, num_sequences, plan.spec.vocab_size, eod_id)
        total += counts
        parts.append(Validation(corpus.entry.name, samples, num_sequences, unigram_entropy(counts)))
    return HeldOut(tuple(parts), unigram_entropy(total))
