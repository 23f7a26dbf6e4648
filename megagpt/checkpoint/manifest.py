"""The manifest of a checkpoint: what it holds, of which model and run, with the size and hash of every file.

    RUN/checkpoints/latest                  name of the newest whole checkpoint
    RUN/checkpoints/step-00000100/
        manifest.json                       this description, written last
        config.toml                         the resolved configuration
        tokenizer.model, tokenizer.json or vocab.txt   copy of the tokenizer
        model-t00-p00.safetensors           weights of tensor rank 0 of pipeline rank 0, by global name
        optimizer-rank00000.pt              optimizer state of one rank

Knows nothing of torch.distributed.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megagpt.data.blend_history import Phase, phases_from_json
from megagpt.durable import flush_folder
from megagpt.errors import CheckpointError
from megagpt.model.spec import ModelSpec
from megagpt.tokenizer import TokenizerKind
from megagpt.tokenizer.load import KINDS

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.toml"
LATEST_NAME = "latest"
_HASH_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    """Size and hash by which a file is known to be whole."""

    num_bytes: int
    sha256: str


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


@dataclass(frozen=True)
class Manifest:
    """All about a checkpoint but its tensors."""

    format_version: int
    megagpt_version: str
    step: int  # updates done
    tokens: int  # tokens trained on
    loss: float | None  # training loss of the last step, in nats a token
    spec: ModelSpec
    layout: CheckpointLayout
    precision: str
    seed: int
    tokenizer_fingerprint: str | None
    tokenizer_file: str | None
    data_fingerprint: str | None  # of what the last steps were trained on; None: several corpora, see phases
    files: dict[str, FileRecord]
    tokenizer_kind: TokenizerKind | None = None  # None: not recorded, so what its name says
    phases: tuple[Phase, ...] = ()  # what the run was trained on, from its first sample; empty: not recorded

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> "Manifest":
        """The manifest that `to_json` wrote. Raises CheckpointError naming the file and what is wrong with it."""
        try:
            values: dict[str, Any] = json.loads(text)
            version = values["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{where} is not a checkpoint manifest ({error}); use another checkpoint") from None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{where} has format version {version}, this megagpt reads version {FORMAT_VERSION}; "
                "use the megagpt that wrote it, or a newer one"
            )
        if values.get("tokenizer_kind") not in (None, *KINDS):
            raise CheckpointError(
                f"{where} names a tokenizer of kind {values['tokenizer_kind']!r}, which this megagpt does not know; "
                "use the megagpt that wrote it, or a newer one"
            )
        try:
            values["spec"] = ModelSpec.from_dict(values["spec"])
            values["layout"] = CheckpointLayout(**values["layout"])
            values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
            values["phases"] = phases_from_json(values.get("phases", []))
            return cls(**values)
        except (TypeError, KeyError, AttributeError, CheckpointError) as error:
            raise CheckpointError(f"{where} is damaged: {error}; use another checkpoint") from None
        except AssertionError as error:  # of ModelSpec
            raise CheckpointError(
                f"{where} is damaged: its model's sizes do not fit together {error}; use another checkpoint"
            ) from None


def model_file(tensor_rank: int, pipeline_rank: int) -> str:
    """Name of the weights of one tensor and pipeline rank."""
    return f"model-t{tensor_rank:02d}-p{pipeline_rank:02d}.safetensors"


def optimizer_file(rank: int) -> str:
    """Name of the optimizer state of one rank."""
    return f"optimizer-rank{rank:05d}.pt"


def step_folder(step: int) -> str:
    """Name of the checkpoint folder of a step."""
    return f"step-{step:08d}"


def hash_file(digest: "hashlib._Hash", path: Path) -> None:
    """Add a file's bytes to a hash, a chunk at a time."""
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)


def file_record(path: Path) -> FileRecord:
    """Size and hash of a file, read once."""
    digest = hashlib.sha256()
    hash_file(digest, path)
    return FileRecord(path.stat().st_size, digest.hexdigest())


def check_file(folder: Path, name: str, record: FileRecord, verify_hash: bool) -> None:
    """Raise CheckpointError unless the file is there, has its size and, if asked, its hash."""
    path = folder / name
    if not path.exists():
        raise CheckpointError(f"{path} is missing; the checkpoint is not whole, use another one")
    size = path.stat().st_size
    if size != record.num_bytes:
        raise CheckpointError(f"{path} has {size} bytes, its manifest says {record.num_bytes}; use another checkpoint")
    if verify_hash and file_record(path).sha256 != record.sha256:
        raise CheckpointError(f"{path} is damaged: its hash differs from its manifest's; use another checkpoint")


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that after a crash it is either whole or not there: temporary name, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    flush_folder(path.parent)
