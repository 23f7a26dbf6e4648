"""What a rank that makes no progress says of itself, and whom the reports of all ranks make the culprit.

In: reports, one of each rank that could still write one. Out: lines for a person. Knows no threads and no processes.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

_PREFIX = "report: "


class HangReport(NamedTuple):
    """One rank's place when it noticed that it makes no progress."""

    rank: int
    host: str
    time: float  # seconds since 1970
    seconds: float  # without progress
    mark: int  # number of the newest mark: the rank with the lowest is the one the others wait for
    place: str  # `step 12 (forward and backward)`
    waits: bool  # in a collective, as far as its Python stack shows; on a GPU it rarely does

    def describe(self) -> str:
        """One line."""
        return f"rank {self.rank} on {self.host} made no progress for {self.seconds:,.0f} s in {self.place}"

    def line(self) -> str:
        """For the file: what `read_report` reads."""
        return _PREFIX + json.dumps(self._asdict())


def read_report(text: str) -> HangReport | None:
    """The newest report in a rank's file; None where there is none."""
    lines = [line for line in text.splitlines() if line.startswith(_PREFIX)]
    return HangReport(**json.loads(lines[-1].removeprefix(_PREFIX))) if lines else None


def name_culprits(reports: Mapping[int, HangReport], num_ranks: int) -> list[str]:
    """Lines that say which ranks the others wait for, as well as that can be known."""
    lines = []
    silent = [rank for rank in range(num_ranks) if rank not in reports]
    if silent:
        lines.append(
            f"{_ranks(silent)} reported nothing: stopped, gone, or on a machine that does not answer; look there first"
        )
    last = max((report.mark for report in reports.values()), default=0)
    behind = [report for report in reports.values() if report.mark < last]
    if behind:
        lowest = min(report.mark for report in behind)
        first = [report for report in behind if report.mark == lowest]
        ahead = next(report.place for report in reports.values() if report.mark == last)
        lines.append(f"{_places(first)} in {first[0].place}: the others are further, in {ahead}, and wait")
    elif not silent:
        busy = [report for report in reports.values() if not report.waits]
        if 0 < len(busy) < num_ranks:
            lines.append(f"{_places(busy)} in {busy[0].place}, in no collective: the others wait in one")
        else:
            lines.append(f"all {num_ranks} ranks are in {next(iter(reports.values())).place}: compare their stacks")
    return lines


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _places(reports: list[HangReport]) -> str:
    hosts = ", ".join(dict.fromkeys(report.host for report in reports))
    return f"{_ranks(sorted(report.rank for report in reports))} on {hosts} {'are' if len(reports) > 1 else 'is'}"
