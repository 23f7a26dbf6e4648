"""One rank's mesh for the tests that save."""

from collections.abc import Iterator

import pytest

from megagpt.parallel.mesh import Mesh, build_mesh, destroy_mesh


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    yield build_mesh(1, 1)
    destroy_mesh()
