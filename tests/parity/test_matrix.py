"""Every composable cell of tensor × sequence parallel × pipeline × ZeRO × context is the same model, in fp32."""

import pytest

from tests.parity.cells import Cell, make_matrix
from tests.parity.compare import check
from tests.parity.measured import Measured

MATRIX = make_matrix()


def test_the_plan_refuses_only_what_cannot_be_ordered() -> None:
    """A rule that grew too strict would take cells out of the matrix without a word."""
    for cell, problems in MATRIX.refused.items():
        expected = []
        if cell.sequence_parallel and cell.tensor == 1:
            expected.append("needs tensor ranks")
        if cell.zero_stage >= 2 and cell.pipeline > 1:
            expected.append("does not work with parallel.pipeline")
        assert len(problems) == len(expected) > 0, (cell, problems)
        for problem in problems:
            assert any(words in problem for words in expected), (cell, problem)
    assert len(MATRIX.composable) == 80
    assert len({str(cell) for cell in MATRIX.composable}) == 80


@pytest.mark.parametrize("cell", MATRIX.composable, ids=str)
def test_a_cell_equals_the_reference(cell: Cell, measured: Measured, request: pytest.FixtureRequest) -> None:
    check(cell.case, "fp32", measured, request.node.name)
