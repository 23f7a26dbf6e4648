"""The batch that a run reads at a step, as text. In: a run folder or configuration, a step. Out: text."""

from pathlib import Path

from megagpt.checkpoint.load import latest_checkpoint
from megagpt.checkpoint.read import read_manifest
from megagpt.config_file import load_config
from megagpt.data.blend import BlendedSamples
from megagpt.data.blend_history import Phase, continue_phases
from megagpt.data.corpora import Corpus, corpus_entries, open_corpora
from megagpt.data.show import show_batch
from megagpt.data.stream import BatchStream
from megagpt.errors import ConfigError
from megagpt.plan import RunPlan, make_plan
from megagpt.tokenizer import load_tokenizer


def show_step(run: str, step: int) -> str:
    """Every sequence of the global batch of a step, decoded: what all data ranks read together.

    `run` is a run folder (its config.toml and checkpoints), a configuration file or a shipped name; `step` counts the
    updates before it. Raises ConfigError, DataError or CheckpointError.
    """
    loaded = load_config(str(Path(run) / "config.toml") if Path(run).is_dir() else run, [])
    config = loaded.config
    entries = corpus_entries(config.data)
    if config.tokenizer.path is None or not entries:
        raise ConfigError(f"{run} names no tokenizer.path or no data.path, so it has no batches to show")
    tokenizer = load_tokenizer(config.tokenizer.path)
    plan = make_plan(loaded, config.parallel.tensor * config.parallel.pipeline, tokenizer.vocab_size)
    if not 0 <= step < plan.num_steps:
        raise ConfigError(f"--step {step} is not a step of {run}, which has steps 0 to {plan.num_steps - 1}")
    corpora = open_corpora(entries, tokenizer, plan.spec.vocab_size, config.data.index_folder)
    length, seed = plan.spec.sequence_length, config.run.seed
    samples = {corpus.fingerprint: corpus.samples("train", length, seed) for corpus in corpora}
    blend = BlendedSamples(_phases(Path(run), plan, corpora), samples)
    stream = BatchStream(blend, length, tokenizer.eod_id, config.data.separate_documents, 0, 1)
    several = len(corpora) > 1 or len(blend.phases) > 1
    return show_batch(
        stream, plan.step_batch(step), tokenizer, (lambda n: blend.place_of(n)[0].name) if several else None
    )


def _phases(folder: Path, plan: RunPlan, corpora: tuple[Corpus, ...]) -> tuple[Phase, ...]:
    """The phases of a run as training would go on from its latest checkpoint, or begin without one."""
    shares = tuple(corpus.share for corpus in corpora)
    latest = latest_checkpoint(folder / "checkpoints")
    if latest is None:
        return continue_phases((), 0, shares, may_change=True)
    manifest = read_manifest(latest)
    first_sample = plan.step_batch(manifest.step).first_sample
    return continue_phases(manifest.phases, first_sample, shares, plan.config.data.corpora is not None)
