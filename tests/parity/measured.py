"""What parity tests measured: the largest difference of each quantity, and in which test it was."""

from typing import NamedTuple


class Difference(NamedTuple):
    """A relative difference and what differs by it."""

    value: float
    where: str


class Measurement(NamedTuple):
    """The largest difference of one quantity so far."""

    largest: Difference
    test: str
    bound: float
    count: int


class Measured:
    """Largest differences by (precision, quantity)."""

    def __init__(self) -> None:
        self.by_quantity: dict[tuple[str, str], Measurement] = {}

    def add(self, precision: str, quantity: str, found: Difference, bound: float, test: str, count: int = 1) -> None:
        """Keep what is larger than before; `found` is the largest of `count` runs."""
        before = self.by_quantity.get((precision, quantity))
        count += 0 if before is None else before.count
        if before is None or found.value > before.largest.value:
            self.by_quantity[precision, quantity] = Measurement(found, test, bound, count)
        else:
            self.by_quantity[precision, quantity] = before._replace(count=count)
