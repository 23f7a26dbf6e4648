"""From measured runs to rows, goals and a table in words. In: measurements. Out: rows. Runs nothing."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from corpus_peers.cases import ARITHMETIC, BUILDER, FORMAT, LIMIT, PAIR, START, TOKENIZER, Case
from corpus_peers.contenders import OURS
from corpus_peers.process import Run


class Measured(NamedTuple):
    """One run of a case; `output_bytes` of its .bin and .idx files."""

    case: Case
    round_number: int
    run: Run
    output_bytes: int


class Row(NamedTuple):
    """A case over its rounds. Times in seconds, MB = 10**6 bytes.

    `ratio`: its median time over that of the row it is compared with (for a builder: ours with the same input and
    workers, so 20 means that ours is 20 times as fast; for a compressed input: its decompression alone).
    `second_ratio`: for a builder the same after taking off what each needs for one document; for a compressed input its
    time over that of our build of the plain file.
    """

    kind: str
    input: str
    name: str
    workers: int
    rounds: int
    seconds: float
    seconds_min: float
    seconds_max: float
    mb_per_second: float
    cpu_seconds: float
    peak_memory_mb: float
    num_processes: int
    output_bytes: int
    ratio: float | None
    second_ratio: float | None
    against: str | None
    identical: str | None


class Goal(NamedTuple):
    """What issue and docs promise, beside what was measured; `met` None where it was not measured."""

    goal: str
    measured: str
    met: bool | None


Key = tuple[str, str, str, int]  # kind, input, name, workers


def rows(measured: Sequence[Measured], identical: Mapping[Key, str]) -> list[Row]:
    """One row a case, in the order of the first round."""
    groups: dict[Key, list[Measured]] = {}
    for one in measured:
        groups.setdefault(key(one.case), []).append(one)
    seconds = {name: median(one.run.seconds for one in group) for name, group in groups.items()}
    return [_row(group, seconds, identical.get(name)) for name, group in groups.items()]


def key(case: Case) -> Key:
    """What tells cases apart."""
    return case.kind, case.corpus.name, case.name, case.workers


def _row(group: Sequence[Measured], seconds: Mapping[Key, float], identical: str | None) -> Row:
    case = group[0].case
    times = [one.run.seconds for one in group]
    return Row(
        kind=case.kind,
        input=case.corpus.name,
        name=case.name,
        workers=case.workers,
        rounds=len(group),
        seconds=median(times),
        seconds_min=min(times),
        seconds_max=max(times),
        mb_per_second=case.corpus.num_bytes / 1e6 / median(times),
        cpu_seconds=median(one.run.cpu_seconds for one in group),
        peak_memory_mb=max(one.run.peak_memory_mb for one in group),
        num_processes=max(one.run.num_processes for one in group),
        output_bytes=group[0].output_bytes,
        ratio=_ratio(case, median(times), seconds),
        second_ratio=_second_ratio(case, median(times), seconds),
        against=case.against,
        identical=identical,
    )


def _ratio(case: Case, own: float, seconds: Mapping[Key, float]) -> float | None:
    if case.against is None:
        return None
    candidates = [seconds.get((case.kind, case.corpus.name, case.against, workers)) for workers in (case.workers, 1)]
    found = next((other for other in candidates if other is not None), None)
    return None if found is None else own / found


def _second_ratio(case: Case, own: float, seconds: Mapping[Key, float]) -> float | None:
    if case.against is None:
        return None
    ours = seconds.get((BUILDER, case.corpus.name, OURS, case.workers))
    if case.kind == FORMAT:
        return None if ours is None else own / ours
    starts = {name: time for (kind, _, name, _), time in seconds.items() if kind == START}
    if case.kind != BUILDER or ours is None or case.name not in starts or OURS not in starts:
        return None
    rest = ours - starts[OURS]
    return (own - starts[case.name]) / rest if rest > starts[OURS] else None  # else the difference is mostly noise


class Scaling(NamedTuple):
    """Efficiency from one worker to two: of ours, of two builds that share nothing, and of the machine itself, in
    arithmetic that two processes do at once. None where it was not measured."""

    ours: float
    pair: float | None
    machine: float | None


def scaling(table: Iterable[Row], corpus: str) -> Scaling | None:
    """t1 / (2 t2) of the same work, or t1 / t2 of work that two processes do each; None where ours was not measured."""
    times = {(row.name, row.workers): row.seconds for row in table if row.input == corpus and row.kind != START}
    one, two, pair = times.get((OURS, 1)), times.get((OURS, 2)), times.get((PAIR, 2))
    if one is None or two is None:
        return None
    alone, both = times.get((ARITHMETIC, 1)), times.get((ARITHMETIC, 2))
    return Scaling(
        one / (2 * two),
        None if pair is None else one / (2 * pair),
        None if alone is None or both is None else alone / both,
    )


def cpu_floor(table: Iterable[Row], row: Row) -> float | None:
    """The least time of a compressed input over that of its decompression alone that this many cores allow: the CPU
    seconds of decompressing and of our plain build, spread over the workers without a gap. None where not measured.
    """
    if row.kind != FORMAT or row.ratio is None:
        return None
    plain = next(
        (
            one.cpu_seconds
            for one in table
            if (one.kind, one.input, one.name, one.workers) == (BUILDER, row.input, OURS, row.workers)
        ),
        None,
    )
    alone = next(one for one in table if (one.kind, one.input) == (FORMAT, row.input) and one.name == row.against)
    return None if plain is None else (alone.cpu_seconds + plain) / row.workers / alone.seconds


def goals(table: Sequence[Row], inputs: Mapping[str, str]) -> list[Goal]:
    """What is promised, for each input (its name, and what it is in words) and number of workers."""
    found: list[Goal] = []
    by_key = {(row.input, row.name, row.workers): row for row in table if row.kind == BUILDER}
    for (name, builder, workers), row in by_key.items():
        where = f"{inputs.get(name, name)}, workers: {workers}"
        promised = {"megatron": 20, "loop": 5}.get(builder)
        if promised is not None and row.ratio is not None:
            goal = f"{where}: {promised} times as fast as {builder}"
            found.append(Goal(goal, f"{row.ratio:.1f} times", row.ratio >= promised))
        if builder == OURS:
            found.append(_memory_goal(where, row))
    for name, words in inputs.items():
        if (efficiency := scaling(table, name)) is not None:
            ceilings = (
                ("two builds that share nothing", efficiency.pair),
                ("the machine's own, arithmetic alone", efficiency.machine),
            )
            measured = "; ".join(f"{what}: {value:.0%}" for what, value in ceilings if value is not None)
            beside = f" ({measured})" if measured else ""
            goal = f"{words}: scaling efficiency of 90 % from one worker to two"
            found.append(Goal(goal, f"{efficiency.ours:.1%}{beside}", efficiency.ours >= 0.9))
    for row in table:
        if row.kind == FORMAT and row.ratio is not None:
            where = f"{inputs.get(row.input, row.input)}, {row.name}"
            goal = f"{where}: within 1.3 times its decompression alone"
            floor = cpu_floor(table, row)
            beside = "" if floor is None else f" (CPU floor: {floor:.2f})"
            found += [Goal(goal, f"{row.ratio:.2f} times{beside}", row.ratio <= 1.3), _memory_goal(where, row)]
    return found


def _memory_goal(where: str, row: Row) -> Goal:
    return Goal(f"{where}: under 200 MB of memory", f"{row.peak_memory_mb:.0f} MB", row.peak_memory_mb < 200)


_HEADINGS: Mapping[str, str] = {
    BUILDER: "Builders on {0}",
    LIMIT: "Parts of the work alone on {0}",
    FORMAT: "Compressed inputs: the content of {0}",
    TOKENIZER: "Other tokenizers on {0}",
    START: "Start-up: one document",
}


def markdown(table: Sequence[Row], found: Sequence[Goal], inputs: Mapping[str, str]) -> list[str]:
    """The tables and goals. `inputs`: what each input is, in words."""
    lines: list[str] = []
    for kind, heading in _HEADINGS.items():
        for name in dict.fromkeys(row.input for row in table if row.kind == kind):
            lines += ["", f"## {heading.format(inputs.get(name, name))}", ""]
            lines += _table([row for row in table if row.kind == kind and row.input == name], kind)
    lines += ["", "## Goals", "", "| goal | measured | met |", "|---|---|---|"]
    words = {True: "yes", False: "no", None: "not measured"}
    return [*lines, *(f"| {goal.goal} | {goal.measured} | {words[goal.met]} |" for goal in found)]


def _table(group: Sequence[Row], kind: str) -> list[str]:
    compared, second = {
        BUILDER: ("time / ours", "without start-up"),
        FORMAT: ("time / decompression", "time / our plain build"),
        TOKENIZER: ("time / library", ""),
    }.get(kind, ("", ""))
    lines = [
        "| | workers | seconds (min–max) | MB/s | CPU s | peak MB (processes) | output MB "
        f"| {compared} | {second} | same bytes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in group:
        ratio, second_ratio = ("" if value is None else f"{value:.2f}" for value in (row.ratio, row.second_ratio))
        size = f"{row.output_bytes / 1e6:.1f}" if row.output_bytes else ""
        speed = "" if kind == START or row.name == ARITHMETIC else f"{row.mb_per_second:.1f}"
        lines.append(
            f"| {row.name} | {row.workers} | {row.seconds:.3f} ({row.seconds_min:.3f}–{row.seconds_max:.3f}) | {speed} "
            f"| {row.cpu_seconds:.2f} | {row.peak_memory_mb:.0f} ({row.num_processes}) | {size} "
            f"| {ratio} | {second_ratio} | {row.identical or ''} |"
        )
    return lines
