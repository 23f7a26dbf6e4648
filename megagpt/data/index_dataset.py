"""Sample indexes ahead of time, on a machine without a GPU. In: a run or a dataset. Out: index files, and a report.

Training finds the files and maps them; without them the first rank to come builds them and the others wait.
"""

import sys

from megagpt.config import DataSection, RunSection
from megagpt.data.corpora import Corpus
from megagpt.data.index_files import IndexStore, IndexUse
from megagpt.data.indexed import IndexedDataset, dataset_files
from megagpt.data.samples import SampleIndex


def is_dataset(name: str) -> bool:
    """Whether `name` is a dataset's prefix, rather than a run or a configuration."""
    return dataset_files(name)[1].is_file()


def index_dataset(
    prefix: str,
    shares: tuple[float, float, float] | None,
    seed: int | None,
    epochs: int,
    folder: str | None,
    keep_small: bool,
) -> list[str]:
    """Index the first `epochs` epochs of a dataset's training split, and its validation split; lines on what was done.

    `shares` and `seed` None: the defaults of data.split and run.seed. Raises DataError.
    """
    shares = DataSection().split if shares is None else shares
    seed = RunSection().seed if seed is None else seed
    dataset = IndexedDataset(prefix)
    store = IndexStore(dataset.prefix, dataset.content_hash(), folder, keep_small, _say)
    train = SampleIndex(dataset, "train", shares, 1, seed, store)
    for epoch in range(epochs):
        train.open_epoch(epoch)
    if shares[1]:
        SampleIndex(dataset, "valid", shares, 1, seed, store).open_epoch(0)
    head = f"{prefix}: {train.num_documents:,} training documents, {train.num_tokens:,} tokens"
    return [head, *_lines(store.uses)]


def index_run(run: str, epochs: int | None, folder: str | None, keep_small: bool) -> list[str]:
    """Index what a run reads from where it stands to its end; of each corpus at most `epochs` epochs (None: all).

    Raises ConfigError, DataError or CheckpointError.
    """
    from megagpt.data.run_samples import open_run_samples

    opened = open_run_samples(run, folder, keep_small, _say)
    blend = opened.blend
    begun = {use.name: use.num_samples for use in blend.uses(opened.first_sample)}
    lines: list[str] = []
    for corpus, use in zip(opened.corpora, blend.uses(opened.num_samples), strict=True):
        samples = blend.samples[corpus.fingerprint]
        first = begun[use.name] // use.samples_per_epoch
        last = max(use.num_samples - 1, 0) // use.samples_per_epoch
        if epochs is not None:
            last = min(last, first + epochs - 1)
        for epoch in range(first, last + 1):
            samples.open_epoch(epoch)
        if corpus.has("valid"):
            corpus.samples("valid", blend.sequence_length, opened.plan.config.run.seed).open_epoch(0)
        lines += [_describe(corpus, samples, use.num_samples, use.epochs), *_lines(corpus.store.uses)]
    return lines


def _describe(corpus: Corpus, samples: SampleIndex, num_samples: int, epochs: float) -> str:
    return (
        f"{corpus.entry.name} ({corpus.entry.path}): {samples.num_documents:,} training documents, "
        f"{samples.num_tokens:,} tokens, {samples.samples_per_epoch:,} samples of {samples.sequence_length:,} tokens "
        f"an epoch; {num_samples:,} samples in this run, {epochs:.2f} epochs"
    )


def _lines(uses: list[IndexUse]) -> list[str]:
    return [_line(use) for use in uses]


def _line(use: IndexUse) -> str:
    if use.path is None:
        return f"  {use.name:9} {use.num_bytes:,} bytes need no file: made in {use.seconds:.3f} s"
    return (
        f"  {use.name:9} {use.path} {use.num_bytes:,} bytes, {'built' if use.built else 'found'} in {use.seconds:.3f} s"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
