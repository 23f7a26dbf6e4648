"""What differs between a checkpoint and the run that is to continue from it, side by side, and what is said of it.

In: the manifest and config.toml of a checkpoint, the run's identity and its loaded configuration. Out: differences, as
a table, as a line, or in the message of a CheckpointError. Knows nothing of torch.distributed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megagpt.checkpoint.manifest import CONFIG_NAME, Manifest
from megagpt.config_file import DEFAULT, LoadedConfig, load_config
from megagpt.config_text import show_value
from megagpt.data.blend_history import CorpusShare
from megagpt.errors import CheckpointError, ConfigError
from megagpt.model.spec import ModelSpec

FIX = "Restore these values, or choose another run.folder to start anew"
BATCH_KEYS = ("train.batch_tokens", "train.batch_ramp_tokens", "train.batch_ramp_start_tokens")
_FINGERPRINT_CHARACTERS = 12
_FOLLOW_FROM = {
    "model.ffn_hidden_size": "model.hidden_size",
    "model.vocab_size": "tokenizer.path",
    "model.padded_vocab_size": "model.vocab_size",
}


class RunIdentity(NamedTuple):
    """What must be the same for a run to continue from a checkpoint."""

    spec: ModelSpec
    precision: str
    seed: int
    tokenizer_fingerprint: str | None


class Difference(NamedTuple):
    """A value that a checkpoint was written with and the one that the run has now, as text."""

    name: str
    saved: str
    now: str
    origin: str = ""  # of the present value: a file, "command line" or "default"

    def describe(self) -> str:
        """`train.lr 0.0006 → 0.0003 (command line)`."""
        return f"{self.name} {self.saved} → {self.now}{f' ({self.origin})' if self.origin else ''}"


def identity_differences(manifest: Manifest, run: RunIdentity, origins: Mapping[str, str]) -> list[Difference]:
    """What must not differ, and does. `origins`: of every dotted key of the run's configuration."""
    pairs: list[tuple[str, Any, Any]] = [
        *((f"model.{name}", saved, getattr(run.spec, name)) for name, saved in vars(manifest.spec).items()),
        ("train.precision", manifest.precision, run.precision),
        ("run.seed", manifest.seed, run.seed),
    ]
    found = [
        Difference(name, show_value(saved), show_value(now), _origin(name, origins))
        for name, saved, now in pairs
        if saved != now
    ]
    if manifest.tokenizer_fingerprint != run.tokenizer_fingerprint:
        there, here = short(manifest.tokenizer_fingerprint), short(run.tokenizer_fingerprint)
        found.append(Difference("tokenizer, its sha256", there, here, origins.get("tokenizer.path", "")))
    return found


def changed_settings(folder: Path, loaded: LoadedConfig) -> list[Difference] | None:
    """Every value of the configuration that a checkpoint's config.toml has otherwise; None where it cannot be read.

    run.folder is left out: a run that was moved is the same run.
    """
    try:
        saved = load_config(str(folder / CONFIG_NAME), [])
    except ConfigError:  # of another megagpt, whose values have other names
        return None
    return [
        Difference(key, show_value(saved.value(key)), show_value(loaded.value(key)), origin)
        for key, origin in loaded.origins.items()
        if key != "run.folder" and saved.value(key) != loaded.value(key)
    ]


def data_differences(saved: Sequence[CorpusShare], now: Sequence[CorpusShare]) -> list[Difference]:
    """Corpora, in their order, that are others, or have other documents or another split."""
    rows = []
    for place in range(max(len(saved), len(now))):
        there, here = _corpus(saved[place : place + 1]), _corpus(now[place : place + 1])
        if there != here:
            rows.append(Difference(f"corpus {place + 1}, its documents", there, here))
    return rows


def short(fingerprint: str | None) -> str:
    """The beginning of a fingerprint, for people."""
    return "unknown" if fingerprint is None else f"{fingerprint[:_FINGERPRINT_CHARACTERS]}…"


def table(differences: Sequence[Difference]) -> str:
    """A line each, aligned: `  run.seed  1234 → 5  (command line)`."""
    widths = [max((len(row[column]) for row in differences), default=0) for column in range(3)]
    lines = []
    for row in differences:
        cells = f"  {row.name:{widths[0]}}  {row.saved:{widths[1]}} → {row.now:{widths[2]}}"
        lines.append(f"{cells}  ({row.origin})" if row.origin else cells.rstrip())
    return "\n".join(lines)


def refusal(
    folder: Path, what: str, refused: Sequence[Difference], settings: Sequence[Difference] | None, fix: str = FIX
) -> CheckpointError:
    """The error of a run that cannot continue from `folder`: `what`, the table, and what else is other.

    `settings`: all of `changed_settings`.
    """
    named = {difference.name for difference in refused}
    others = [difference.name for difference in settings or () if difference.name not in named]
    also = f"\nother values that changed: {', '.join(others)}" if others else ""
    return CheckpointError(f"the run cannot continue from {folder}: {what}\n{table(refused)}{also}\n{fix}")


def _origin(name: str, origins: Mapping[str, str]) -> str:
    """Where a value of the model came from; those that may be left out follow from others then."""
    origin = origins.get(name, DEFAULT)
    return f"follows from {_FOLLOW_FROM[name]}" if origin == DEFAULT and name in _FOLLOW_FROM else origin


def _corpus(corpora: Sequence[CorpusShare]) -> str:
    return f"{corpora[0].name} {short(corpora[0].fingerprint)}" if corpora else "none"
