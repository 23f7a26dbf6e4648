"""Kernels run in Triton's interpreter where there is no GPU."""

import pytest

from tests.unit.kernels.interpreter import mend_interpreter


@pytest.fixture(autouse=True, scope="session")
def _interpreter() -> None:
    mend_interpreter()
