"""The manifest of a checkpoint: what it holds, of which model and run, with the size and hash of every file.

    RUN/checkpoints/latest                  name of the newest whole checkpoint
    RUN/checkpoints/step-00000100/
        manifest.json                       this description, written last
        config.toml                         the resolved configuration
        tokenizer.model, tokenizer.json or vocab.txt   copy of the tokenizer
        index.json                          which rank's files hold which elements of every parameter
        weights-rank00000.safetensors       float32 (master) weights that one rank saved, by global name
        moments-rank00000.safetensors       AdamW's moments of the same elements

Version 1 had the weights of each tensor and pipeline rank and DeepSpeed's own state instead (version_1.py).
Knows nothing of torch.distributed.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megagpt import __version__
from megagpt.checkpoint.fault_history import FaultHistory
from megagpt.checkpoint.file_record import USE_ANOTHER, FileRecord
from megagpt.data.blend_history import Phase, phases_from_json
from megagpt.durable import flush_folder
from megagpt.errors import CheckpointError, DamagedCheckpointError
from megagpt.model.spec import ModelSpec
from megagpt.plan_layout import describe_axes
from megagpt.tokenizer import TokenizerKind
from megagpt.tokenizer.load import KINDS

FORMAT_VERSION = 2
OLDEST_VERSION = 1
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.toml"
LATEST_NAME = "latest"
PRECISIONS = ("fp32", "bf16", "fp16")
_STEP_FOLDER = re.compile(r"step-(\d{8,})", re.ASCII)
_OWN_HASH = re.compile(r'\A\{\n  "sha256": "([0-9a-f]{64})",\n')  # how a manifest begins; of all that comes after it


@dataclass(frozen=True)
class CheckpointLayout:
    """The layout whose ranks wrote the checkpoint."""

    tensor: int
    pipeline: int
    virtual_stages: int
    data: int
    sequence_parallel: bool
    zero_stage: int
    context: int = 1
    layers: tuple[int, ...] | None = None  # of each chunk, in model order; None: equally many

    def __post_init__(self) -> None:
        if self.layers is not None:  # a list, as JSON has it
            object.__setattr__(self, "layers", tuple(self.layers))

    def describe(self) -> str:
        """`tensor 2 × pipeline 4 × data 8, virtual stages 1, ZeRO 1`."""
        axes = describe_axes(self.tensor, self.context, self.pipeline, self.data)
        return f"{axes}, virtual stages {self.virtual_stages}, ZeRO {self.zero_stage}"


@dataclass(frozen=True)
class LossScale:
    """What moves in the dynamic loss scale of fp16."""

    scale: float
    iteration: int
    last_overflow_iteration: int
    hysteresis: int  # overflows left before the scale is lowered


@dataclass(frozen=True)
class OptimizerProgress:
    """The optimizer's state beside its tensors; the same on every rank."""

    updates: int  # AdamW's step count: steps without those whose update was left out
    loss_scale: LossScale | None = None  # fp16


@dataclass(frozen=True)
class Manifest:
    """All about a checkpoint but its tensors."""

    format_version: int
    megagpt_version: str
    step: int  # updates done
    tokens: int  # tokens trained on
    loss: float | None  # training loss of the last step, in nats a token; None: that step was skipped
    spec: ModelSpec
    layout: CheckpointLayout
    precision: str
    seed: int
    tokenizer_fingerprint: str | None
    tokenizer_file: str | None
    data_fingerprint: str | None  # of what the last steps were trained on; None: several corpora, see phases
    files: dict[str, FileRecord]
    tokenizer_kind: TokenizerKind | None = None  # None: not recorded, so what its name says
    optimizer: OptimizerProgress | None = None  # None: version 1
    phases: tuple[Phase, ...] = ()  # what the run was trained on, from its first sample; empty: not recorded
    faults: FaultHistory = field(default_factory=FaultHistory)

    def to_json(self) -> str:
        """The text of manifest.json. Its first entry is the hash of all that follows it."""
        rest = json.dumps(asdict(self), indent=2, ensure_ascii=False).removeprefix("{\n") + "\n"
        return f'{{\n  "sha256": "{_hash_of(rest)}",\n{rest}'

    @classmethod
    def from_json(cls, text: str, where: Path) -> "Manifest":
        """The manifest that `to_json` wrote. Raises CheckpointError naming the file and what is wrong with it.

        That is a DamagedCheckpointError where the file is not as it was written. Earlier manifests have no hash.
        """
        begin = _OWN_HASH.match(text)
        if not begin and "sha256" in text.partition(",")[0]:
            raise DamagedCheckpointError(f"{where} is damaged: its own hash is not as it was written; {USE_ANOTHER}")
        if begin and _hash_of(text[begin.end() :]) != begin[1]:
            raise DamagedCheckpointError(f"{where} is damaged: its hash differs from its content's; {USE_ANOTHER}")
        try:
            values: dict[str, Any] = json.loads(text)
            version = values["format_version"]
            if begin:
                del values["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpointError(f"{where} is not a checkpoint manifest ({error}); {USE_ANOTHER}") from None
        if not isinstance(version, int) or not OLDEST_VERSION <= version <= FORMAT_VERSION:
            raise CheckpointError(
                f"{where} has format version {version}, written by megagpt {values.get('megagpt_version', 'unknown')}; "
                f"this megagpt, {__version__}, reads {OLDEST_VERSION} to {FORMAT_VERSION}: install the one that wrote "
                "it, or a newer one"
            )
        if values.get("tokenizer_kind") not in (None, *KINDS):
            raise CheckpointError(
                f"{where} names a tokenizer of kind {values['tokenizer_kind']!r}, which this megagpt does not know; "
                "use the megagpt that wrote it, or a newer one"
            )
        if values.get("precision") not in PRECISIONS:
            raise DamagedCheckpointError(
                f"{where} is damaged: its precision is {values.get('precision')!r}, none of {', '.join(PRECISIONS)}; "
                f"{USE_ANOTHER}"
            )
        try:
            values["spec"] = ModelSpec.from_dict(values["spec"])
            values["layout"] = CheckpointLayout(**values["layout"])
            values["files"] = {name: FileRecord.from_dict(record) for name, record in values["files"].items()}
            values["optimizer"] = _optimizer_progress(values.get("optimizer"))
            values["phases"] = phases_from_json(values.get("phases", []))
            values["faults"] = FaultHistory.from_json(values.get("faults"))
            return cls(**values)
        except (TypeError, ValueError, KeyError, AttributeError, CheckpointError) as error:
            raise DamagedCheckpointError(f"{where} is damaged: {error}; {USE_ANOTHER}") from None
        except AssertionError as error:  # of ModelSpec
            raise DamagedCheckpointError(
                f"{where} is damaged: its model's sizes do not fit together {error}; {USE_ANOTHER}"
            ) from None


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _optimizer_progress(values: dict[str, Any] | None) -> OptimizerProgress | None:
    if values is None:
        return None
    scale = values.pop("loss_scale")
    return OptimizerProgress(**values, loss_scale=None if scale is None else LossScale(**scale))


def parse_step(name: str) -> int | None:
    """The step of a checkpoint folder's name, or None where it is no such name."""
    match = _STEP_FOLDER.fullmatch(name)
    return int(match[1]) if match else None


def step_folder(step: int) -> str:
    """Name of the checkpoint folder of a step."""
    return f"step-{step:08d}"


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that after a crash it is either whole or not there: temporary name, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    flush_folder(path.parent)
