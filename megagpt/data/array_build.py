"""A build as an array of tasks on many machines. In: what is asked of it. Out: whether a part is done; a merge.

A task may run again, on another machine, at any time: a finished part is kept where it was made from the same input
with the same options. Knows nothing of SLURM.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megagpt.data.build_resume import input_state
from megagpt.data.corpus import corpus_files
from megagpt.data.indexed import dataset_files
from megagpt.data.journal import InputState
from megagpt.data.merge import merge_datasets
from megagpt.data.parts import task_output
from megagpt.data.sidecar import read_sidecar
from megagpt.durable import write_whole
from megagpt.errors import DataError
from megagpt.tokenizer import load_tokenizer


@dataclass(frozen=True)
class ArrayRequest:
    """What a task's part depends on. `inputs`: every file of the whole corpus, as it is now."""

    inputs: tuple[InputState, ...]
    tokenizer: str  # its fingerprint
    text_key: str
    on_error: str
    task: int
    num_tasks: int

    def to_json(self) -> dict[str, Any]:
        """As it is read again from a file."""
        return json.loads(json.dumps(asdict(self)))


def array_request(
    inputs: Sequence[str], tokenizer: str, text_key: str, on_error: str, task: int, num_tasks: int
) -> ArrayRequest:
    """What is asked of a task now. Raises DataError for inputs or a tokenizer that do not exist."""
    states = tuple(input_state(file.path, file.size_bytes) for file in corpus_files(inputs))
    return ArrayRequest(states, load_tokenizer(tokenizer).fingerprint, text_key, on_error, task, num_tasks)


def part_is_done(output: str, request: ArrayRequest, overwrite: bool) -> bool:
    """Whether the task's part is finished and was made as `request` asks; where not, the request is written down.

    Raises DataError where the dataset exists, or a finished part of another request does, and not `overwrite`.
    """
    part = task_output(output, request.task, request.num_tasks)
    is_finished = dataset_files(part)[2].exists() and not Path(f"{part}.journal").exists()
    record, now = _record(part), request.to_json()
    if is_finished:
        before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if before == now:
            return True
        if not overwrite:
            raise DataError(
                f"{part} is finished and was built {_difference(before, now)}; replace the parts of all tasks with "
                "--overwrite, or choose another output"
            )
    index = dataset_files(output)[1]
    if index.exists() and not overwrite:
        raise DataError(f"{index} exists; choose another output, or replace it with --overwrite")
    write_whole(record, json.dumps(now, ensure_ascii=False, indent=2) + "\n")
    return False


def merge_array(output: str, request: ArrayRequest, overwrite: bool, workers: int) -> list[str]:
    """Join the parts of all tasks into `output`, check its hashes, and remove the parts; a report in words.

    `request`: that of any task. May be stopped and run again at any time. Raises DataError where a part is missing, or
    was made from other input or with other options.
    """
    parts = [task_output(output, task, request.num_tasks) for task in range(request.num_tasks)]
    if not Path(f"{output}.merged").exists():
        _check_requests(parts, request)
    if parts == [output]:
        _record(output).unlink(missing_ok=True)
        return [f"dataset        {output}.bin, .idx, .json, by one task: there is nothing to merge"]
    merged = Path(f"{output}.merged")  # the dataset is complete and the parts may go
    lines = [f"dataset        {output}.bin, .idx, .json, merged before"]
    if not merged.exists():
        if not _is_join_of(output, parts):
            lines = merge_datasets(output, parts, verify=True, overwrite=overwrite, workers=workers).lines()
        merged.touch()
    for part in parts:
        for path in (*dataset_files(part), _record(part)):
            path.unlink(missing_ok=True)
    merged.unlink()
    return lines


def _record(part: str) -> Path:
    return Path(f"{part}.request")


def _check_requests(parts: Sequence[str], request: ArrayRequest) -> None:
    """Every part that is there is what the arguments ask for, and so all are of one build."""
    others: dict[int, str] = {}
    for task, part in enumerate(parts):
        record = _record(part)
        if not record.exists() and (len(parts) == 1 or not dataset_files(part)[2].exists()):
            continue  # a part that is missing is named when the parts are opened; one task's is the dataset
        before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if before != (now := replace(request, task=task).to_json()):
            others[task] = f"{part} was built {_difference(before, now)} than array-merge is given"
    if len(others) == len(parts):
        raise DataError(f"{others[0]}, and so were all parts; give array-merge what the tasks were given")
    if others:
        numbers = ", ".join(map(str, others))
        raise DataError(
            f"{next(iter(others.values()))}, but not all parts were; run the tasks that differ ({numbers}) again with "
            "--overwrite, or give array-merge what they were given"
        )


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if not before:
        return "without a record of its inputs"
    changed = [name.replace("_", " ") for name in now if before.get(name) != now[name]]
    return f"with other {' and '.join(changed)}"


def _is_join_of(output: str, parts: Sequence[str]) -> bool:
    """Whether the dataset `output` is what the parts join to, by the hashes of their shards."""
    if not dataset_files(output)[1].exists():
        return False
    whole = read_sidecar(dataset_files(output)[2])
    sidecars = [read_sidecar(dataset_files(part)[2]) for part in parts]
    if whole is None or None in sidecars or not whole.shards:
        return False
    hashes = [shard.hash for sidecar in sidecars if sidecar is not None for shard in sidecar.shards]
    return hashes == [shard.hash for shard in whole.shards]
