"""Coming back from a checkpoint: does it belong to this run, and each rank's part of it.

The layout may differ from the one that wrote it. The checks against the run need no process group, so that they happen
before one starts.
"""

from pathlib import Path

from megagpt.checkpoint.differences import RunIdentity, changed_settings, identity_differences, refusal
from megagpt.checkpoint.file_record import check_file
from megagpt.checkpoint.index import INDEX_NAME
from megagpt.checkpoint.manifest import FORMAT_VERSION, Manifest
from megagpt.checkpoint.pieces import Piece
from megagpt.checkpoint.read import read_manifest
from megagpt.checkpoint.state import StateReader
from megagpt.config_file import LoadedConfig
from megagpt.errors import CheckpointError


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
    """Fill the masters and moments that a rank holds, in place, and check the hashes of its share of the files.

    All ranks together check each file once; on the layout that saved, a rank checks what it wrote, in the same reading.
    Raises CheckpointError; the pieces are of use only where no rank finds damage.
    """
    reader = StateReader(folder, manifest)
    files = reader.files_by_rank()
    if len(files) >= num_ranks:
        mine = [file for written in files[rank::num_ranks] for file in written]
    else:
        mine = [file for written in files for file in written][rank::num_ranks]
    if rank == 0:  # the small files: configuration, tokenizer; the reader has checked the index
        for file in sorted(set(manifest.files).difference(*files, [INDEX_NAME])):
            check_file(folder, file, manifest.files[file], verify_hash=True)
    reader.fill(pieces, tensor_ranks, verify=mine)
