"""The batch that a run reads at a step, as text. In: a run folder or configuration, a step. Out: text."""

from pathlib import Path

from megagpt.config_file import load_config
from megagpt.data.check import check_dataset
from megagpt.data.indexed import IndexedDataset
from megagpt.data.samples import SampleIndex
from megagpt.data.show import show_batch
from megagpt.data.stream import BatchStream
from megagpt.errors import ConfigError
from megagpt.plan import make_plan
from megagpt.tokenizer import load_tokenizer


def show_step(run: str, step: int) -> str:
    """Every sequence of the global batch of a step, decoded: what all data ranks read together.

    `run` is a run folder (its config.toml), a configuration file or a shipped name; `step` counts the updates before
    it. Raises ConfigError or DataError.
    """
    loaded = load_config(str(Path(run) / "config.toml") if Path(run).is_dir() else run, [])
    config = loaded.config
    if config.tokenizer.path is None or config.data.path is None:
        raise ConfigError(f"{run} names no tokenizer.path or no data.path, so it has no batches to show")
    tokenizer = load_tokenizer(config.tokenizer.path)
    plan = make_plan(loaded, config.parallel.tensor * config.parallel.pipeline, tokenizer.vocab_size)
    if not 0 <= step < plan.num_steps:
        raise ConfigError(f"--step {step} is not a step of {run}, which has steps 0 to {plan.num_steps - 1}")
    dataset = IndexedDataset(config.data.path)
    check_dataset(dataset, tokenizer, plan.spec.vocab_size)
    length = plan.spec.sequence_length
    samples = SampleIndex(dataset, "train", config.data.split, length, config.run.seed)
    stream = BatchStream(samples, length, tokenizer.eod_id, config.data.separate_documents, 0, 1)
    return show_batch(stream, plan.step_batch(step), tokenizer)
