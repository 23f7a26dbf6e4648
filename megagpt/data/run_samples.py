"""The training samples of a run that is described by a folder or a configuration. In: its name. Out: plan and samples.

Reads the configuration, the tokenizer, the datasets and, in a run folder, the phases in the latest checkpoint: what
training itself would go on with. Does not train, needs no GPU, and imports torch only where there is a checkpoint.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from megagpt.config_file import load_config
from megagpt.data.blend import BlendedSamples
from megagpt.data.blend_history import Phase, continue_phases
from megagpt.data.corpora import Corpus, corpus_entries, open_corpora
from megagpt.data.sample_skips import SampleSkip, after_skips, num_skipped
from megagpt.errors import ConfigError
from megagpt.plan import RunPlan, make_plan
from megagpt.tokenizer import Tokenizer, load_tokenizer
from megagpt.training.run_record import read_sessions


class RunSamples(NamedTuple):
    """What a run reads. `first_sample`: where it would go on from its latest checkpoint; 0 without one."""

    plan: RunPlan
    tokenizer: Tokenizer
    corpora: tuple[Corpus, ...]
    blend: BlendedSamples
    first_sample: int
    skips: tuple[SampleSkip, ...] = ()

    @property
    def num_samples(self) -> int:
        """Samples of the whole run, with those that it leaves out."""
        in_plan = self.plan.batches.total_tokens // self.plan.spec.sequence_length
        return in_plan + num_skipped(self.skips, self.plan.num_steps)


def open_run_samples(
    run: str,
    index_folder: str | None = None,
    keep_small: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> RunSamples:
    """The samples of `run`: a run folder, a configuration file or a shipped name.

    `index_folder` stands for data.index_folder; `keep_small` and `say` are IndexStore's. Raises ConfigError, DataError
    or CheckpointError.
    """
    loaded = load_config(str(Path(run) / "config.toml") if Path(run).is_dir() else run, [])
    config = loaded.config
    entries = corpus_entries(config.data)
    if config.tokenizer.path is None or not entries:
        raise ConfigError(f"{run} names no tokenizer.path or no data.path, so it has no batches")
    tokenizer = load_tokenizer(config.tokenizer.path)
    plan = make_plan(loaded, config.parallel.tensor * config.parallel.pipeline, tokenizer.vocab_size)
    folder = config.data.index_folder if index_folder is None else index_folder
    corpora = open_corpora(entries, tokenizer, plan.spec.vocab_size, folder, keep_small, say)
    history, skips, first_step = _history(Path(run) / "checkpoints")
    first_sample = after_skips(plan.step_batch(first_step), skips).first_sample
    shares = tuple(corpus.share for corpus in corpora)
    sessions = read_sessions(Path(run))  # the last one may have been allowed other data, and not saved yet
    may_replace = bool(sessions) and sessions[-1].start.allow_data_change
    phases = continue_phases(history, first_sample, shares, config.data.corpora is not None, may_replace)
    length, seed = plan.spec.sequence_length, config.run.seed
    samples = {corpus.fingerprint: corpus.samples("train", length, seed) for corpus in corpora}
    return RunSamples(plan, tokenizer, corpora, BlendedSamples(phases, samples), first_sample, skips)


def _history(checkpoints: Path) -> tuple[tuple[Phase, ...], tuple[SampleSkip, ...], int]:
    """The phases in the latest checkpoint, the samples left out before it, and its step."""
    if not checkpoints.is_dir():
        return (), (), 0
    from megagpt.checkpoint.read import latest_checkpoint, read_manifest

    latest = latest_checkpoint(checkpoints)
    if latest is None:
        return (), (), 0
    manifest = read_manifest(latest)
    return manifest.phases, manifest.faults.skips, manifest.step
