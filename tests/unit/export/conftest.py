"""The same tiny checkpoint as the tests of inference."""

from tests.unit.inference.conftest import checkpoint, mesh, model, tokenizer_path

__all__ = ["checkpoint", "mesh", "model", "tokenizer_path"]
