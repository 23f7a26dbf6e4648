"""Reads any elements of any parameter from the pieces of a checkpoint, whatever layouts wrote it and reads it.

Files are mapped, not read: only the pages that hold wanted elements come from the disk, and no more than one block is
in memory beside what is filled. Knows nothing of torch.distributed.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megagpt.checkpoint.file_record import check_file
from megagpt.checkpoint.index import INDEX_NAME, Index, Place, check_index, file_of, tensor_key
from megagpt.checkpoint.manifest import Manifest
from megagpt.checkpoint.pieces import KINDS, Cut, Piece, num_slices, overlay
from megagpt.errors import DamagedCheckpointError
from megagpt.model.names import parameter_shapes

_MOST_OPEN_FILES = 64


class StateReader:
    """The state in one checkpoint folder. Raises DamagedCheckpointError where it is not whole or a file is damaged."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._infos = parameter_shapes(manifest.spec)
        path = self._checked(INDEX_NAME, verify_hash=True)
        self._index = Index.from_json(path.read_bytes().decode("utf-8", "replace"), path)
        check_index(self._index, self._infos, path)
        self._files: dict[str, Any] = {}

    def files(self, kinds: tuple[str, ...] = KINDS) -> list[str]:
        """Names of the files that hold such tensors, in the order of the ranks that wrote them."""
        return [file for written in self.files_by_rank(kinds) for file in written]

    def files_by_rank(self, kinds: tuple[str, ...] = KINDS) -> list[list[str]]:
        """The same, a list for each rank that wrote some."""
        ranks = sorted({place.rank for places in self._index.pieces.values() for place in places})
        return [list(dict.fromkeys(file_of(rank, kind) for kind in kinds)) for rank in ranks]

    def fill(self, pieces: list[Piece], tensor_ranks: int, kinds: tuple[str, ...] = KINDS) -> None:
        """Fill the tensors of pieces in place. `tensor_ranks`: over how many the pieces' slices divide a parameter."""
        for piece in pieces:
            info = self._infos[piece.name]
            wanted = Cut(piece.tensor_slice, num_slices(info, tensor_ranks), piece.start, piece.stop)
            for place in self._index.pieces[piece.name]:
                copies = overlay(info, self._index.cut(place, info), wanted)
                for kind in kinds if copies else ():
                    source = self._tensor(piece.name, kind, place)
                    for copy in copies:
                        copy.run(source, piece.tensor(kind))

    def whole(self, name: str, kind: str) -> Tensor:
        """A whole parameter, or a moment of it, in its shape: float32 on the CPU."""
        info = self._infos[name]
        value = torch.empty(info.shape)
        flat = value.view(-1)
        self.fill([Piece(name, 0, 0, flat.numel(), flat, flat, flat)], 1, (kind,))
        return value

    def _tensor(self, name: str, kind: str, place: Place) -> Tensor:
        """A saved piece: [stop - start], a view of the mapped file."""
        file, key = file_of(place.rank, kind), tensor_key(name, kind)
        where = self._folder / file
        try:
            tensor: Tensor = self._open(file).get_tensor(key)
        except SafetensorError as error:
            raise DamagedCheckpointError(f"{where} is damaged: {error}; use another checkpoint") from None
        if tensor.shape != (place.stop - place.start,) or tensor.dtype != torch.float32:
            raise DamagedCheckpointError(
                f"{key} in {where} has shape {tuple(tensor.shape)} and {tensor.dtype}, the index says "
                f"{(place.stop - place.start,)} and torch.float32; use another checkpoint"
            )
        return tensor

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self._checked(file, verify_hash=False)
            if len(self._files) == _MOST_OPEN_FILES:
                self._files.pop(next(iter(self._files)))
            self._files[file] = safe_open(path, "pt")  # type: ignore[no-untyped-call]
        return self._files[file]

    def _checked(self, file: str, verify_hash: bool) -> Path:
        if file not in self._manifest.files:
            raise DamagedCheckpointError(f"{self._folder} holds no {file}; it is not whole")
        check_file(self._folder, file, self._manifest.files[file], verify_hash)
        return self._folder / file
