"""A tiny checkpoint's contents for tests."""

import torch

from megagpt.checkpoint.manifest import FORMAT_VERSION, CheckpointLayout, Manifest
from megagpt.checkpoint.save import CheckpointContents
from megagpt.model.names import parameter_shapes
from megagpt.model.spec import ModelSpec

SPEC = ModelSpec("tiny", 1, 2, 8, 32, 16, 100, 128, "gelu_tanh", 1e-5, 0.0, 0.0, 0.02)


def sample_contents(step: int) -> CheckpointContents:
    """Weights counted up from 0 and a small optimizer state, as one rank has them."""
    manifest = Manifest(
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
    )
    model = {
        name: torch.arange(torch.Size(info.shape).numel(), dtype=torch.float32).reshape(info.shape)
        for name, info in parameter_shapes(SPEC).items()
    }
    return CheckpointContents(manifest, "", None, model, {"moments": torch.zeros(64)})
