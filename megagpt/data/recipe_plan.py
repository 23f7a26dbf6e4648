"""What a cleaning was begun with, kept in its work folder: a later run goes on only with the same. Runs nothing."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from megagpt.data.build_resume import input_state
from megagpt.data.corpus import corpus_files
from megagpt.data.indexed import dataset_files
from megagpt.data.recipe_chinese import CleanSettings, remove_parts
from megagpt.durable import FULL_DISK, write_whole
from megagpt.errors import DataError
from megagpt.tokenizer import load_tokenizer

_PLAN = "plan.json"
_LOCK = "lock"
_OWN = (_LOCK, f"{_PLAN}.partial")  # what may be there before the plan is


@contextmanager
def held(work: Path) -> Iterator[None]:
    """Make the folder `work`, and keep other processes of this machine out of it.

    Raises DataError where one is in it, where it is a folder of something else, and where it cannot be written.
    """
    with _hold(work):
        yield


def _hold(work: Path) -> TextIO:
    """The open file whose lock is held."""
    try:
        return _locked(work)
    except BlockingIOError as error:
        raise DataError(f"another process is cleaning in {work} now; wait for it, or choose another --work") from error
    except OSError as error:
        fix = "free space on its disk, or choose" if error.errno in FULL_DISK else "choose"
        raise DataError(
            f"cannot write {error.filename or work}: {error.strerror}; {fix} another --work folder"
        ) from error


def _locked(work: Path) -> TextIO:
    if work.exists() and not (work / _PLAN).exists() and any(path.name not in _OWN for path in work.iterdir()):
        raise DataError(f"{work} is not the work folder of a cleaning: it has no {_PLAN}; choose another --work folder")
    work.mkdir(parents=True, exist_ok=True)
    stream = open(work / _LOCK, "w")  # noqa: SIM115 (closed by who holds it)
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise
    return stream


def begin(settings: CleanSettings, restart: bool = False) -> None:
    """Write down what is being done, or compare it with what was begun in the same `work` folder, which is held.

    Raises DataError where the dataset exists and is not of this cleaning, or where inputs, tokenizer or rules are
    others than those it was begun with. `restart` removes what was done before, and lets the dataset be replaced.
    """
    now, begun = _plan(settings), None if restart else _begun(settings.work)
    if begun is not None:
        _compare(settings.work, begun, now)
    else:
        _refuse_existing(settings, restart)
        _empty(settings.work)
    write_whole(settings.work / _PLAN, json.dumps(now, ensure_ascii=False, indent=2) + "\n")


def planned_tasks(work: Path) -> int | None:
    """The number of tasks that the cleaning in `work` was begun with; None where none was begun."""
    begun = _begun(work)
    return None if begun is None else int(begun["tasks"])


def _begun(work: Path) -> dict[str, Any] | None:
    try:
        return json.loads((work / _PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{work / _PLAN} is damaged ({error}); start over with --restart") from error


def _plan(settings: CleanSettings) -> dict[str, Any]:
    """What must be the same for the work of one run to serve another, as JSON holds it."""
    plan = asdict(settings)
    del plan["work"]
    plan["output"] = os.path.abspath(settings.output)
    plan["tokenizer"] = load_tokenizer(settings.tokenizer).fingerprint
    plan["inputs"] = [asdict(input_state(file.path, file.size_bytes)) for file in corpus_files(settings.inputs)]
    plan.update(plan.pop("rules"))
    return json.loads(json.dumps(plan))


def _compare(work: Path, begun: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if begun.get(name) == value or (name, value) == ("on_error", "skip"):  # tasks that are done had nothing to skip
            continue
        was = (
            "other inputs" if name == "inputs" else f"{name.replace('_', ' ')} {begun.get(name)}, which is now {value}"
        )
        raise DataError(
            f"the cleaning in {work} was begun with {was}; go on with what it was begun with, start over with "
            "--restart, or choose another --work folder"
        )


def _refuse_existing(settings: CleanSettings, replace: bool) -> None:
    index = dataset_files(settings.output)[1]
    if index.exists() and not replace:
        raise DataError(f"{index} exists; choose another output, or replace it with --restart")
    folder = settings.text_output
    if folder is not None and os.path.isdir(folder) and os.listdir(folder):
        raise DataError(f"the folder {folder} of --text-output is not empty; empty it, or choose another")


def _empty(work: Path) -> None:
    """Remove what an earlier cleaning left, its plan last."""
    begun = _begun(work)
    if begun is not None:
        remove_parts(begun["output"], begun["tasks"])
    for path in sorted(work.iterdir(), key=lambda path: path.name == _PLAN):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()
