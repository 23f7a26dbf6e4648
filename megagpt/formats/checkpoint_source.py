"""Our own checkpoint as a ModelSource: whatever layout wrote it, one parameter in memory at a time."""

from math import prod
from pathlib import Path

import torch
from torch import Tensor

from megagpt.checkpoint import version_1
from megagpt.checkpoint.file_record import check_file
from megagpt.checkpoint.manifest import CONFIG_NAME, Manifest
from megagpt.checkpoint.pieces import KINDS, MASTER, Piece
from megagpt.checkpoint.read import find_checkpoint, read_manifest
from megagpt.checkpoint.state import StateReader
from megagpt.config_file import load_config
from megagpt.data.corpora import corpus_entries
from megagpt.errors import CheckpointError, ConfigError
from megagpt.formats.source import ModelSource, TrainingFacts, round_like
from megagpt.model.names import local_shape
from megagpt.tokenizer import Tokenizer, load_tokenizer


class CheckpointSource(ModelSource):
    """The model of a checkpoint folder, or of the latest checkpoint of a run folder.

    Values are float32, those that the run computed with: a 16-bit run's are rounded to its precision. `verify` checks
    the hash of every file of weights first. Raises CheckpointError where it is missing or damaged, or holds another
    tokenizer than it says; DataError for a damaged tokenizer.
    """

    def __init__(self, path: str | Path, verify: bool = True) -> None:
        self.folder, self.format = find_checkpoint(path), "megagpt checkpoint"
        self.manifest = read_manifest(self.folder)
        self.spec = self.manifest.spec
        self.tokenizer = load_own_tokenizer(self.folder, self.manifest)
        self.facts = TrainingFacts(
            self.manifest.megagpt_version,
            self.manifest.step,
            self.manifest.tokens,
            self.manifest.loss,
            self.manifest.precision,
            _corpora(self.folder),
        )
        if self.manifest.format_version == 1:
            self._old = version_1.read_parameters(self.folder, self.manifest, verify)
            return
        self._reader = StateReader(self.folder, self.manifest)
        for name in self._reader.files((MASTER,)) if verify else ():
            check_file(self.folder, name, self.manifest.files[name], verify_hash=True)

    def read(self, name: str) -> Tensor:
        """float32."""
        if self.manifest.format_version == 1:
            return self._old[name].clone()
        return round_like(self._reader.whole([name], MASTER)[name], self.manifest.precision)

    def read_slice(self, name: str, tensor_rank: int, tensor_size: int) -> Tensor:
        """float32; reads these elements alone."""
        info = self.infos[name]
        if self.manifest.format_version == 1 or info.split_dim is None:
            return super().read_slice(name, tensor_rank, tensor_size)
        value = torch.empty(local_shape(info, tensor_size))
        piece = Piece(name, tensor_rank, 0, value.numel(), *[value.view(-1)] * len(KINDS))
        self._reader.fill([piece], tensor_size, (MASTER,))
        return round_like(value, self.manifest.precision)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """float32; reads these elements alone."""
        if self.manifest.format_version == 1:
            return super().read_rows(name, start, stop)
        columns = self.infos[name].shape[1:]
        value = torch.empty(stop - start, *columns)
        width = prod(columns)
        piece = Piece(name, 0, start * width, stop * width, *[value.view(-1)] * len(KINDS))
        self._reader.fill([piece], 1, (MASTER,))
        return round_like(value, self.manifest.precision)


def _corpora(folder: Path) -> str | None:
    """Names of the corpora in the configuration that a checkpoint was trained with, None where it says nothing."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    try:
        data = load_config(str(path), []).config.data
    except ConfigError:  # of another version of megagpt
        return None
    return ", ".join(entry.name for entry in corpus_entries(data)) or None


def load_own_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | None:
    """The copy of the tokenizer in a checkpoint folder, None where the run had none.

    Raises CheckpointError where it is missing or another one, DataError where it is damaged.
    """
    if manifest.tokenizer_file is None:
        return None
    file = folder / manifest.tokenizer_file
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; the checkpoint is not whole, use another one")
    tokenizer = load_tokenizer(file, manifest.tokenizer_kind)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise CheckpointError(
            f"{file} is not the tokenizer that the model was trained with: its fingerprint is {tokenizer.fingerprint}, "
            f"the manifest says {manifest.tokenizer_fingerprint}; put the run's tokenizer file there"
        )
    return tokenizer
