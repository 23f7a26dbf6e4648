"""The batch that a run reads at a step, as text. In: a run folder or configuration, a step. Out: text."""

from megagpt.data.run_samples import open_run_samples
from megagpt.data.sample_skips import after_skips
from megagpt.data.show import show_batch
from megagpt.data.stream import BatchStream
from megagpt.errors import ConfigError


def show_step(run: str, step: int) -> str:
    """Every sequence of the global batch of a step, decoded: what all data ranks read together.

    `run` is a run folder (its config.toml and checkpoints), a configuration file or a shipped name; `step` counts the
    updates before it. Raises ConfigError, DataError or CheckpointError.
    """
    opened = open_run_samples(run)
    plan, blend, config = opened.plan, opened.blend, opened.plan.config
    if not 0 <= step < plan.num_steps:
        raise ConfigError(f"--step {step} is not a step of {run}, which has steps 0 to {plan.num_steps - 1}")
    separate = config.data.separate_documents
    stream = BatchStream(blend, plan.spec.sequence_length, opened.tokenizer.eod_id, separate, 0, 1)

    def corpus_of(sample: int) -> str:
        return blend.place_of(sample)[0].name

    several = len(opened.corpora) > 1 or len(blend.phases) > 1
    batch = after_skips(plan.step_batch(step), opened.skips)
    return show_batch(stream, batch, opened.tokenizer, corpus_of if several else None)
