"""The data of a prepared run: training samples in the order of its phases, held-out samples. No communication.

In: plan, tokenizer, the phases of the checkpoint that the run continues from. Out: RunData.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megagpt.checkpoint.differences import FIX, Difference, data_differences, refusal
from megagpt.checkpoint.manifest import Manifest
from megagpt.data.blend import BlendedSamples
from megagpt.data.blend_history import CorpusShare, Phase, continue_phases
from megagpt.data.corpora import Corpus, corpus_entries, open_corpora
from megagpt.data.entropy import count_labels, unigram_entropy
from megagpt.data.index_core import NOTE, index_core, is_native
from megagpt.data.sample_skips import after_skips, num_skipped
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
    num_skipped: int = 0  # samples before it that no step has read (data/sample_skips.py)


def prepare_data(
    plan: RunPlan,
    tokenizer: Tokenizer,
    resume_from: tuple[Path, Manifest] | None,
    settings: Sequence[Difference] | None = None,
    allow_data_change: bool = False,
) -> RunData:
    """Open and check the corpora, and their index at the sample where the run begins or goes on.

    `settings`: values that the checkpoint's configuration has otherwise. `allow_data_change`: go on with other data.
    Raises DataError, or CheckpointError where the checkpoint was trained on data that this configuration does not have.
    """
    config = plan.config
    say = (lambda text: print(text, file=sys.stderr)) if launched_rank() == 0 else (lambda text: None)
    entries = corpus_entries(config.data)
    corpora = open_corpora(entries, tokenizer, plan.spec.vocab_size, config.data.index_folder, say=say)
    skips, first_step = (resume_from[1].faults.skips, resume_from[1].step) if resume_from else ((), 0)
    first_sample = after_skips(plan.step_batch(first_step), skips).first_sample
    shares = tuple(corpus.share for corpus in corpora)
    phases: tuple[Phase, ...] = (Phase(0, shares),)
    if resume_from is not None:
        may_change = config.data.corpora is not None
        phases = _continued(*resume_from, first_sample, shares, may_change, settings, allow_data_change)
    length, seed = plan.spec.sequence_length, config.run.seed
    samples = {corpus.fingerprint: corpus.samples("train", length, seed) for corpus in corpora}
    training = BlendedSamples(phases, samples)
    if resume_from is None or resume_from[1].step < plan.num_steps:
        training.open_at(first_sample)
    held_out = _held_out(plan, tokenizer, corpora)
    return RunData(training, held_out, first_sample, num_skipped(skips, first_step))


def describe_data(data: RunData, plan: RunPlan) -> list[str]:
    """Lines for a person: how much text, how often each corpus is read until the end of the run, what changes now."""
    training = data.training
    num_samples = plan.batches.total_tokens // training.sequence_length + data.num_skipped
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
        others = " (other documents)" if now.describe() == before.describe() else ""
        lines.append(f"  {new} on {now.describe()}{others}; before: {before.describe()}")
    for samples in training.samples.values():
        for use in samples.store.uses if samples.store is not None else ():
            if use.path is not None:
                done = "built" if use.built else "found"
                lines.append(f"  index {use.path} ({use.num_bytes:,} bytes) {done} in {use.seconds:.2f} s")
    if not is_native(index_core()):
        lines.append(f"note: {NOTE}")
    return lines


def _continued(
    folder: Path,
    manifest: Manifest,
    first_sample: int,
    shares: tuple[CorpusShare, ...],
    may_change: bool,
    settings: Sequence[Difference] | None,
    allow_data_change: bool,
) -> tuple[Phase, ...]:
    """The phases of a run that goes on from a checkpoint. Raises CheckpointError where its data are others."""
    if not manifest.phases:
        raise CheckpointError(
            f"the run cannot continue from {folder}: it was written by a megagpt that had another order of samples. "
            "Choose another run.folder to start anew"
        )
    try:
        return continue_phases(manifest.phases, first_sample, shares, may_change, allow_data_change)
    except CheckpointError as error:
        refused = [difference for difference in settings or () if difference.name.startswith("data.")]
        refused += data_differences(manifest.phases[-1].corpora, shares)
        why = str(error)
        fix = (
            f"{why[0].upper()}{why[1:]}. Where the new data are meant, add --allow-data-change: the run goes on with "
            f"them from sample {first_sample:,} on. {FIX}"
        )
        raise refusal(folder, "it was trained on other data", refused, settings, fix) from None


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
