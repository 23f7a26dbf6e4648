"""Coming back from a checkpoint: does it belong to this run, and each rank's part of it.

The layout may differ from the one that wrote it. The checks against the run need no process group, so that they happen
before one starts.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from megagpt.checkpoint.differences import RunIdentity, changed_settings, identity_differences, refusal
from megagpt.checkpoint.file_record import check_file
from megagpt.checkpoint.manifest import FORMAT_VERSION, Manifest
from megagpt.checkpoint.pieces import Piece
from megagpt.checkpoint.read import read_manifest
from megagpt.checkpoint.state import StateReader
from megagpt.config_file import LoadedConfig
from megagpt.errors import CheckpointError, DamagedCheckpointError

_HASHING_THREADS = 2  # a rank has two large files: weights and moments


def check_belongs(folder: Path, run: RunIdentity, loaded: LoadedConfig) -> Manifest:
    """The manifest of a checkpoint that this run can continue from. Raises CheckpointError listing every difference."""
    manifest = read_manifest(folder)
    refused = identity_differences(manifest, run, loaded.origins)
    if refused:
        raise refusal(folder, "what must stay as it was differs", refused, changed_settings(folder, loaded))
    if manifest.format_version < FORMAT_VERSION:
        raise CheckpointError(
            f"the run cannot continue from {folder}: it has format {manifest.format_version}, whose optimizer state "
            f"only megagpt {manifest.megagpt_version} reads, on the layout that wrote it. Continue with that version, "
            "or choose another run.folder to start anew; generate, evaluate and export read this checkpoint"
        )
    return manifest


def load_share(
    folder: Path, manifest: Manifest, pieces: list[Piece], tensor_ranks: int, rank: int, num_ranks: int
) -> None:
    """Fill the masters and moments that a rank holds, in place, and check its share of the files' hashes.

    Both at once: on the layout that saved, what is hashed is what is filled in, and it comes from the disk once. Raises
    CheckpointError; the pieces are of use only where no rank finds damage.
    """
    with ThreadPoolExecutor(max_workers=_HASHING_THREADS) as threads:
        checks = [threads.submit(check) for check in _share_of_checks(folder, manifest, rank, num_ranks)]
        trouble = None
        try:
            load_pieces(folder, manifest, pieces, tensor_ranks)
        except DamagedCheckpointError as error:
            trouble = error
    for check in checks:  # first: they know which file it is that differs
        check.result()
    if trouble is not None:
        raise trouble


def verify_share(folder: Path, manifest: Manifest, rank: int, num_ranks: int) -> None:
    """Check the hashes of a rank's share of a checkpoint's files. Raises DamagedCheckpointError naming a bad one."""
    for check in _share_of_checks(folder, manifest, rank, num_ranks):
        check()


def _share_of_checks(folder: Path, manifest: Manifest, rank: int, num_ranks: int) -> list[Callable[[], None]]:
    """All ranks together read each file once; on the layout that saved, a rank reads those that it wrote."""
    files = StateReader(folder, manifest).files_by_rank()
    if len(files) >= num_ranks:
        mine = [file for written in files[rank::num_ranks] for file in written]
    else:
        mine = [file for written in files for file in written][rank::num_ranks]
    if rank == 0:  # the small files: configuration, tokenizer
        mine += sorted(set(manifest.files).difference(*files))
    return [partial(check_file, folder, file, manifest.files[file], verify_hash=True) for file in mine]


def load_pieces(folder: Path, manifest: Manifest, pieces: list[Piece], tensor_ranks: int) -> None:
    """Fill the masters and moments that a rank holds, in place, reading no other elements. Raises CheckpointError."""
    StateReader(folder, manifest).fill(pieces, tensor_ranks)
