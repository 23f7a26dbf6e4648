"""The datasets that a merge joins. In: prefixes and globs. Out: open parts, checked to fit together.

A part may be one task's share of a build: PREFIX.task-00003-of-00016, without .bin and .idx where the share was empty.
Knows nothing of how parts are joined.
"""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from megagpt.data.idx_file import IdxFile
from megagpt.data.indexed import dataset_files
from megagpt.data.sidecar import Sidecar, read_sidecar
from megagpt.errors import DataError

_TASK = re.compile(r"(?P<build>.*)\.task-(?P<task>\d+)-of-(?P<num_tasks>\d+)", re.DOTALL)  # as task_prefix says it
_SHOWN_TASKS = 10


class Task(NamedTuple):
    """A part's place in a build of several tasks, from its name."""

    build: str
    number: int
    num_tasks: int


class Part(NamedTuple):
    """A dataset to join. `idx` is None where a task's share of the input was empty; then there is no .bin either."""

    prefix: str
    idx: IdxFile | None
    sidecar: Sidecar | None

    @property
    def bin_path(self) -> Path:
        """The file with the token ids."""
        return dataset_files(self.prefix)[0]

    @property
    def bin_bytes(self) -> int:
        """Its size as the index has it."""
        return 0 if self.idx is None else self.idx.num_tokens * self.idx.dtype.itemsize


def part_prefixes(inputs: Sequence[str]) -> list[str]:
    """The prefixes that `inputs` name, in their order; what a glob matches in the order of its tasks, else by name.

    A file's name stands for its prefix, several files of one dataset side by side for one. Raises DataError where
    nothing matches, or where some but not all tasks of a build are named, or not in their order.
    """
    prefixes: list[str] = []
    for name in inputs:
        found = _matches(name) if glob.has_magic(name) and not _exists(name) else [_without_suffix(name)]
        for prefix in found:
            suffixed = name != prefix
            if not (suffixed and prefixes and prefixes[-1] == prefix):  # the next file of the same dataset
                prefixes.append(prefix)
    _check_tasks(prefixes)
    return prefixes


def task_prefix(output: str | Path, task: int, num_tasks: int) -> str:
    """The prefix of task `task`'s part (from 0) of the dataset `output`."""
    return f"{output}.task-{task:05d}-of-{num_tasks:05d}"


def task_output(output: str | Path, task: int, num_tasks: int) -> str:
    """The prefix that task `task` of a build in `num_tasks` writes; `output` itself where there is one task."""
    return str(output) if num_tasks == 1 else task_prefix(output, task, num_tasks)


def task_of(prefix: str) -> Task | None:
    """What the name of a task's part says; None for any other dataset."""
    match = _TASK.fullmatch(prefix)
    return Task(match["build"], int(match["task"]), int(match["num_tasks"])) if match else None


def open_parts(prefixes: Sequence[str]) -> list[Part]:
    """Look at every part. Raises DataError for damage, and for parts that do not fit."""
    parts = [open_part(prefix) for prefix in prefixes]
    with_tokens = [part for part in parts if part.idx is not None]
    if not with_tokens:
        raise DataError(f"there is nothing to join: {' '.join(prefixes)} have no documents")
    first = with_tokens[0]
    for part in with_tokens[1:]:
        assert part.idx is not None, part
        assert first.idx is not None, first
        if part.idx.dtype != first.idx.dtype:
            raise DataError(
                f"{first.prefix} has ids of {first.idx.dtype} and {part.prefix} of {part.idx.dtype}: they cannot be "
                "joined; build both with the same tokenizer and program"
            )
    described = [part for part in parts if part.sidecar is not None]
    for part in described[1:]:
        _check_same_tokenizer(described[0], part)
    return parts


def _check_same_tokenizer(first: Part, other: Part) -> None:
    assert first.sidecar is not None, first
    assert other.sidecar is not None, other
    if other.sidecar.fingerprint != first.sidecar.fingerprint:
        raise DataError(
            f"{first.prefix} was built with one tokenizer ({_tokenizer_words(first.sidecar)}) and {other.prefix} with "
            f"another ({_tokenizer_words(other.sidecar)}); rebuild one of them with the other's"
        )
    ends = (first.sidecar.eod_id, other.sidecar.eod_id)
    if ends[0] != ends[1]:
        raise DataError(
            f"documents end with id {ends[0]} in {first.prefix} and with id {ends[1]} in {other.prefix}; rebuild one "
            "of them"
        )


def _tokenizer_words(sidecar: Sidecar) -> str:
    return f"{sidecar.tokenizer_kind}, sha256 {sidecar.fingerprint}"


def open_part(prefix: str) -> Part:
    """Look at one dataset: sizes and counts agree. Raises DataError."""
    prefix = _without_suffix(prefix)
    bin_path, idx_path, sidecar_path = dataset_files(prefix)
    sidecar = read_sidecar(sidecar_path)
    if sidecar is not None and sidecar.num_documents == 0 and not bin_path.exists() and not idx_path.exists():
        return Part(prefix, None, sidecar)
    for path in (idx_path, bin_path):
        if not path.is_file():
            raise DataError(f"dataset file {path} does not exist{_why_missing(prefix)}")
    idx = IdxFile(idx_path)
    part = Part(prefix, idx, sidecar)
    found = os.path.getsize(bin_path)
    if found != part.bin_bytes:
        state = "truncated" if found < part.bin_bytes else "longer than its index says"
        raise DataError(
            f"{bin_path} is {state}: {idx_path.name} describes {part.bin_bytes} bytes, the file has {found}; "
            "copy both files again or rebuild the dataset"
        )
    if sidecar is not None:
        described, has = (sidecar.num_documents, sidecar.num_tokens), (idx.num_documents, idx.num_tokens)
        if described != has:
            raise DataError(
                f"{sidecar_path} belongs to another dataset: it describes {described[0]} documents and {described[1]} "
                f"tokens, {idx_path.name} has {has[0]} and {has[1]}; copy all three files again or rebuild the dataset"
            )
    return part


def _why_missing(prefix: str) -> str:
    if Path(f"{prefix}.journal").exists() or Path(f"{prefix}.bin.partial").exists():
        return ": its build is not finished; run the command that began it again, it continues where it was"
    return "; name a dataset's PREFIX (without .bin, .idx and .json), or build it"


def _check_tasks(prefixes: list[str]) -> None:
    """Tasks of one build are all there, once each, in their order."""
    builds: dict[tuple[str, int], list[int]] = {}
    for prefix in prefixes:
        task = task_of(prefix)
        if task is not None:
            builds.setdefault((task.build, task.num_tasks), []).append(task.number)
    for (build, num_tasks), numbers in builds.items():
        others = sorted(count for name, count in builds if name == build and count != num_tasks)
        if others:
            raise DataError(
                f"{build} was built in {num_tasks} tasks and in {others[0]}: name those of one build, such as "
                f"'{build}.task-*-of-{num_tasks:05}', or the documents would be there twice"
            )
        missing = sorted(set(range(num_tasks)) - set(numbers))
        if missing:
            shown = ", ".join(map(str, missing[:_SHOWN_TASKS])) + (", …" if len(missing) > _SHOWN_TASKS else "")
            raise DataError(
                f"{len(missing)} of the {num_tasks} tasks of {build} are missing: {shown}; run them (again), then merge"
            )
        if numbers != list(range(num_tasks)):
            raise DataError(
                f"the tasks of {build} are not each named once, in their order; name them with the glob "
                f"'{build}.task-*'"
            )


def _matches(pattern: str) -> list[str]:
    """Prefixes that a glob matches; its datasets are found by any of their files that is complete."""
    base = _without_suffix(pattern)
    complete = {_without_suffix(name) for name in glob.glob(f"{base}.idx")}
    empty_tasks = {_without_suffix(name) for name in glob.glob(f"{base}.json")}
    prefixes = sorted(complete | {prefix for prefix in empty_tasks if task_of(prefix)}, key=_by_task)
    if not prefixes:
        raise DataError(f"no dataset matches {pattern}; name PREFIX, without .bin, .idx and .json")
    return prefixes


def _by_task(prefix: str) -> tuple[str, int]:
    task = task_of(prefix)
    return (prefix, 0) if task is None else (task.build, task.number)


def _exists(name: str) -> bool:
    return any(path.exists() for path in dataset_files(_without_suffix(name)))


def _without_suffix(name: str) -> str:
    for suffix in (".bin", ".idx", ".json"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name
