"""A tiny checkpoint's contents for tests."""

import torch
from torch import Tensor

from megagpt.checkpoint.manifest import FORMAT_VERSION, CheckpointLayout, Manifest, OptimizerProgress
from megagpt.checkpoint.pieces import Piece
from megagpt.checkpoint.save import CheckpointContents
from megagpt.model.names import parameter_shapes
from megagpt.model.spec import ModelSpec

SPEC = ModelSpec("tiny", 1, 2, 8, 32, 16, 100, 128, "gelu_tanh", 1e-5, 0.0, 0.0, 0.02)


def sample_manifest(step: int) -> Manifest:
    """Of one rank, without files."""
    return Manifest(
        format_version=FORMAT_VERSION,
        megagpt_version="0.0.0",
        step=step,
        tokens=step * 10,
        loss=1.5,
        spec=SPEC,
        layout=CheckpointLayout(1, 1, 1, 1, False, 1),
        precision="fp32",
        seed=1,
        tokenizer_fingerprint=None,
        tokenizer_file=None,
        data_fingerprint=None,
        files={},
        optimizer=OptimizerProgress(step),
    )


def sample_contents(step: int, rank: int = 0, num_ranks: int = 1) -> CheckpointContents:
    """What one rank owns of weights and moments that are counted up, each parameter shared evenly over ranks."""
    pieces = []
    for name, values in sample_parameters().items():
        size = values.numel()
        start, stop = size * rank // num_ranks, size * (rank + 1) // num_ranks
        pieces.append(whole_piece(name, values).narrow(start, stop))
    return CheckpointContents(sample_manifest(step), "", None, pieces)


def sample_parameters() -> dict[str, Tensor]:
    """Weights counted up from 0."""
    return {
        name: torch.arange(torch.Size(info.shape).numel(), dtype=torch.float32).reshape(info.shape)
        for name, info in parameter_shapes(SPEC).items()
    }


def whole_piece(name: str, values: Tensor) -> Piece:
    """A parameter with moments that are its values halved and squared."""
    flat = values.reshape(-1)
    return Piece(name, 0, 0, flat.numel(), flat, flat / 2, flat**2)
