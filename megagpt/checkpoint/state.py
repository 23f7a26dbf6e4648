"""Reads any elements of any parameter from the pieces of a checkpoint, whatever layouts wrote it and reads it.

Only what holds wanted elements comes from the disk, except of files whose hash is checked, and no more than a few MB of
it are in memory beside what is filled. Knows nothing of torch.distributed.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from megagpt.checkpoint.file_record import FileRecord, check_file
from megagpt.checkpoint.index import INDEX_NAME, Index, check_index, file_of, tensor_key
from megagpt.checkpoint.manifest import Manifest
from megagpt.checkpoint.pieces import KINDS, Cut, Piece, num_slices, overlay
from megagpt.checkpoint.tensor_read import Fill, read_tensors
from megagpt.errors import DamagedCheckpointError
from megagpt.model.names import parameter_shapes

_FILES_AT_ONCE = 2  # weights and moments of a rank


class StateReader:
    """The state in one checkpoint folder. Raises DamagedCheckpointError where it is not whole or a file is damaged."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._infos = parameter_shapes(manifest.spec)
        path = folder / INDEX_NAME
        check_file(folder, INDEX_NAME, self._record(INDEX_NAME), verify_hash=True)
        self._index = Index.from_json(path.read_bytes().decode("utf-8", "replace"), path)
        check_index(self._index, self._infos, path)

    def files(self, kinds: tuple[str, ...] = KINDS) -> list[str]:
        """Names of the files that hold such tensors, in the order of the ranks that wrote them."""
        return [file for written in self.files_by_rank(kinds) for file in written]

    def files_by_rank(self, kinds: tuple[str, ...] = KINDS) -> list[list[str]]:
        """The same, a list for each rank that wrote some."""
        ranks = sorted({place.rank for places in self._index.pieces.values() for place in places})
        return [list(dict.fromkeys(file_of(rank, kind) for kind in kinds)) for rank in ranks]

    def fill(
        self, pieces: list[Piece], tensor_ranks: int, kinds: tuple[str, ...] = KINDS, verify: Sequence[str] = ()
    ) -> None:
        """Fill the tensors of pieces in place; `verify`: files to check the hashes of, which are read whole.

        `tensor_ranks`: over how many the pieces' slices divide a parameter. With damage, what is filled is of no use.
        """
        fills: dict[str, list[Fill]] = {file: [] for file in verify}
        for piece in pieces:
            info = self._infos[piece.name]
            wanted = Cut(piece.tensor_slice, num_slices(info, tensor_ranks), piece.start, piece.stop)
            for place in self._index.pieces[piece.name]:
                for copy in overlay(info, self._index.cut(place, info), wanted):
                    for kind in kinds:
                        fill = Fill(tensor_key(piece.name, kind), place.stop - place.start, copy, piece.tensor(kind))
                        fills.setdefault(file_of(place.rank, kind), []).append(fill)
        with ThreadPoolExecutor(max_workers=_FILES_AT_ONCE) as threads:
            reads = [
                threads.submit(read_tensors, self._folder / file, wants, self._record(file), file in verify)
                for file, wants in fills.items()
            ]
        for read in reads:
            read.result()

    def whole(self, names: Iterable[str], kind: str, verify: bool = False) -> dict[str, Tensor]:
        """Whole parameters, or a moment of each, in their shapes: float32 on the CPU. `verify`: check hashes, too."""
        values = {name: torch.empty(self._infos[name].shape) for name in names}
        pieces = [Piece(name, 0, 0, value.numel(), *[value.view(-1)] * len(KINDS)) for name, value in values.items()]
        self.fill(pieces, 1, (kind,), self.files((kind,)) if verify else ())
        return values

    def _record(self, file: str) -> FileRecord:
        if file not in self._manifest.files:
            raise DamagedCheckpointError(f"{self._folder} holds no {file}; it is not whole")
        return self._manifest.files[file]
