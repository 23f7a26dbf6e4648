"""What is recorded of a run and where it goes: metrics.jsonl always, TensorBoard and Weights & Biases if asked.

Records are made of numbers already summed over ranks; only rank 0 writes.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from megagpt.checkpoint.manifest import write_durably
from megagpt.config import LogSection, RunConfig
from megagpt.config_file import dump_toml
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. Times and rates are over the steps since the last record, evaluation and saving left out."""

    step: int  # updates done, from 1
    tokens: int  # tokens trained on so far
    loss: float  # Σ loss / Σ tokens of the step, in nats; NaN where the update was skipped
    lr: float
    grad_norm: float  # global, before clipping
    loss_scale: float  # 1 unless fp16
    applied: bool  # False: the update was skipped, by fp16's loss scaling or by faults.not_finite
    seconds_per_step: float
    tokens_per_second: float  # all ranks
    model_tflops: float  # model TFLOP/s of one device
    mfu: float | None  # share of the device's dense peak; None where the peak is not known
    slowest_rank: int | None = None  # in this step (CUDA: the one before); None where no other does the same work
    slowest_ratio: float | None = None  # its own seconds over the median of the other data ranks of its stage


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation on the validation split, of all corpora together."""

    step: int
    validation_loss: float  # nats a token
    perplexity: float
    unigram_entropy: float  # nats a token, of the same held-out tokens
    num_tokens: int


@dataclass(frozen=True)
class CorpusEvaluationRecord(EvaluationRecord):
    """One evaluation on the validation split of one of several corpora."""

    corpus: str


Record = StepRecord | EvaluationRecord


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite where it overflows."""
    return math.exp(loss) if loss < 700 else math.inf


class MetricsSink(Protocol):
    """A place where records go."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def rewind(self, step: int) -> None:
        """Drop the records of steps after `step`, which are undone."""

    def close(self) -> None:
        """Write out what is still buffered."""


class JsonlSink:
    """metrics.jsonl: one JSON object a record, flushed at once. On resume, records of undone steps are dropped.

    A number that is not finite, such as the norm of a step that overflowed, is null: JSON has no other word for it.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self._path = path
        self._file = self._open_at(first_step)

    def write(self, record: Record) -> None:
        """Append one line."""
        values = {name: value if _is_json(value) else None for name, value in asdict(record).items()}
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Write the file anew without them."""
        before, self._file = self._file, self._open_at(step)  # which stays in use where a full disk refuses the new one
        before.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open_at(self, step: int) -> TextIO:
        if self._path.exists():
            kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_durably(self._path, "".join(line + "\n" for line in kept))
        return self._path.open("a", encoding="utf-8")


class TensorBoardSink:
    """TensorBoard event files under RUN/tensorboard."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder = folder
        self._writer = self._open_at(first_step)

    def write(self, record: Record) -> None:
        """One scalar for each number."""
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record.step)

    def rewind(self, step: int) -> None:
        """A new event file, which tells TensorBoard to hide them."""
        self._writer.close()
        self._writer = self._open_at(step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()

    def _open_at(self, step: int) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=step + 1)


class WandbSink:
    """Weights & Biases; one wandb run for one run folder, also across resumes."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        import wandb
        from wandb.sdk.lib.runid import generate_id

        id_file = folder / "wandb-id"
        if not id_file.exists():
            id_file.write_text(generate_id(), encoding="utf-8")
        try:
            self._run = wandb.init(
                project=config.log.wandb_project,
                name=config.run.name,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(folder),
                mode=config.log.wandb,
                config=config.model_dump(),
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f'log.wandb = "{config.log.wandb}" cannot start: {error}; run `wandb login`, or use "offline" or '
                '"disabled"'
            ) from None

    def write(self, record: Record) -> None:
        """Log every number at the record's step."""
        self._run.log(_numbers(record), step=record.step)

    def rewind(self, step: int) -> None:
        """wandb's steps only grow: it keeps them, and takes no other record of the same steps."""

    def close(self) -> None:
        """End the wandb run."""
        self._run.finish()


def open_sinks(folder: Path, config: RunConfig, first_step: int) -> list[MetricsSink]:
    """The sinks that the log section asks for. Rank 0 only. Raises ConfigError where wandb cannot start."""
    log: LogSection = config.log
    sinks: list[MetricsSink] = [JsonlSink(folder / "metrics.jsonl", first_step)]
    if log.tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard", first_step))
    if log.wandb != "disabled":
        sinks.append(WandbSink(folder, config))
    return sinks


def write_run_config(folder: Path, config: RunConfig) -> None:
    """The resolved configuration, beside what it made; the old one stays where the new one cannot be written."""
    write_durably(folder / "config.toml", dump_toml(config))


def _numbers(record: Record) -> dict[str, float]:
    group = "train" if isinstance(record, StepRecord) else "validation"
    values: dict[str, Any] = asdict(record)
    del values["step"]
    if isinstance(record, CorpusEvaluationRecord):
        group = f"validation/{values.pop('corpus')}"
    return {f"{group}/{name}": float(value) for name, value in values.items() if value is not None}


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _step_of(line: str) -> float:
    """Step of a line of metrics.jsonl; infinite for a line that a crash cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
