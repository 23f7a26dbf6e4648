"""Generation on a GPU: the cache changes nothing, and text is that of the CPU. No result has been recorded yet."""

from pathlib import Path

import pytest
import torch

from megagpt.inference.model import load_for_inference
from megagpt.parallel.mesh import build_mesh, destroy_mesh
from tests.unit.inference.tiny import SPEC, random_parameters, train_tiny_tokenizer, write_checkpoint

pytestmark = pytest.mark.gpu


def test_cached_logits_on_the_gpu_equal_whole_logits(tmp_path: Path):
    train_tiny_tokenizer(tmp_path / "tokenizer.model")
    folder = write_checkpoint(tmp_path / "checkpoint", SPEC, random_parameters(SPEC), tmp_path / "tokenizer.model")
    mesh = build_mesh(1, 1)
    try:
        model = load_for_inference(folder, mesh)
        assert model.device.type == "cuda"
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, SPEC.vocab_size, (2, SPEC.sequence_length), generator=generator).cuda()
        whole, caches = model.logits(tokens), model.make_caches(2, SPEC.sequence_length)
        for place in range(SPEC.sequence_length):
            part = model.logits(tokens[:, place : place + 1], place, caches)[:, 0]
            assert (part - whole[:, place]).abs().max() < 1e-3
            assert torch.equal(part.argmax(-1), whole[:, place].argmax(-1))
    finally:
        destroy_mesh()
