"""Continuing from a checkpoint that any layout wrote: each rank reads what it holds. Every rank calls it."""

from pathlib import Path

from megagpt.checkpoint.load import load_pieces, verify_share
from megagpt.checkpoint.manifest import Manifest
from megagpt.parallel.agree import on_every_rank
from megagpt.parallel.engine import Engine


def load_engine(engine: Engine, folder: Path, manifest: Manifest) -> None:
    """Fill a new engine's weights and optimizer state. Gathers over all ranks.

    Raises on every rank the first rank's CheckpointError where a file is missing or damaged.
    """
    mesh = engine.mesh
    on_every_rank(lambda: verify_share(folder, manifest, mesh.rank, mesh.world_size), mesh)
    on_every_rank(lambda: load_pieces(folder, manifest, engine.held_pieces(), mesh.tensor_size), mesh)
    assert manifest.optimizer is not None, "check_belongs refuses format 1"
    engine.continue_from(manifest.optimizer)
