"""The largest differences that parity tests measured, printed at the end of every run of them."""

from collections.abc import Iterator

import pytest

from tests.parity.measured import Measured

_KEY = pytest.StashKey[Measured]()


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Iterator[Measured]:
    """What all parity tests of this run measured."""
    pytestconfig.stash[_KEY] = Measured()
    return pytestconfig.stash[_KEY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line a quantity: the worst case, its bound, and where it was."""
    found = config.stash.get(_KEY, None)
    if found is None or not found.by_quantity:
        return
    terminalreporter.section("parity: largest relative differences from the float64 reference")
    for (precision, quantity), (largest, test, bound, count) in sorted(found.by_quantity.items()):
        terminalreporter.write_line(
            f"{precision} {quantity:8} {largest.value:.1e} (bound {bound:.0e}, {count} runs): {test}, {largest.where}"
        )
