"""The tiny checkpoint and model, made once a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megagpt.inference.model import InferenceModel, load_for_inference
from megagpt.parallel.mesh import Mesh, build_mesh, destroy_mesh
from tests.unit.inference.tiny import SPEC, random_parameters, train_tiny_tokenizer, write_checkpoint


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    yield build_mesh(1, 1)
    destroy_mesh()


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tokenizer.model"
    train_tiny_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "step-00000007"
    return write_checkpoint(folder, SPEC, random_parameters(SPEC), tokenizer_path)


@pytest.fixture(scope="module")
def model(checkpoint: Path, mesh: Mesh) -> InferenceModel:
    return load_for_inference(checkpoint, mesh)
