"""One process as a mesh, made once a module."""

from collections.abc import Iterator

import pytest

from megagpt.parallel.mesh import Mesh, build_mesh, destroy_mesh


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    yield build_mesh(1, 1)
    destroy_mesh()
