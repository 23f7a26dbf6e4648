"""The largest differences that parity tests measured, printed at the end of every run of them.

A test's own go into its report, which reaches the process that prints also where several processes run the tests.
"""

from collections.abc import Iterator

import pytest

from tests.parity.measured import Difference, Measured

_PROPERTY = "measured"


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Iterator[Measured]:
    """What one parity test measures."""
    found = Measured()
    yield found
    for (precision, quantity), (largest, test, bound, count) in found.by_quantity.items():
        numbers = (precision, quantity, *largest, test, bound, count)
        request.node.user_properties.append((_PROPERTY, list(numbers)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a quantity: the worst case, its bound, and where it was."""
    whole = Measured()
    for report in terminalreporter.getreports(""):  # of what follows a test that passed
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name == _PROPERTY:
                precision, quantity, difference, where, test, bound, count = value
                whole.add(precision, quantity, Difference(difference, where), bound, test, count)
    if not whole.by_quantity:
        return
    terminalreporter.section("parity: largest relative differences from the float64 reference")
    for (precision, quantity), (largest, test, bound, count) in sorted(whole.by_quantity.items()):
        terminalreporter.write_line(
            f"{precision} {quantity:8} {largest.value:.1e} (bound {bound:.0e}, {count} runs): {test}, {largest.where}"
        )
