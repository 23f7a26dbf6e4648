"""Builds datasets with small chunks and shards, each in a process that may kill itself (SIGKILL) at a file operation.

In: lines of JSON, a Request each. Out: a line of JSON each, an Outcome. The processes are forked from this one, so that
starting them costs little. Run by test_build_kill.py.
"""

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from megagpt.data.builder import build_dataset
from megagpt.data.sources import Sizes
from megagpt.errors import DataError
from megagpt.tokenizer import load_tokenizer

COUNTED = ("write", "fdatasync", "fsync", "replace", "unlink", "ftruncate", "open", "mkdir", "rmdir")


class Request(NamedTuple):
    """A build; it dies at its file operation number `operation` (-1: never), a write torn in half."""

    output: str
    tokenizer: str
    inputs: list[str]
    operation: int
    overwrite: bool


class Outcome(NamedTuple):
    """How it ended: the exit status, negative for a signal; what it said; how many file operations it took."""

    status: int
    said: str
    operations: int


def die_at(number: int) -> "count[int]":
    """Count the calls of COUNTED in the module os, and end at call `number`."""
    calls = count()

    def counted(name: str, real: Callable) -> Callable:
        def call(*arguments: object, **named: object) -> object:
            if next(calls) == number:
                if name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])  # type: ignore[arg-type]
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for name in COUNTED:
        setattr(os, name, counted(name, getattr(os, name)))
    return calls


def build(request: Request, say: Callable[[object], None]) -> int:
    """Build; 0, 2 after an error of the user, 1 after any other."""
    calls = die_at(request.operation)
    try:
        build_dataset(
            request.inputs,
            request.output,
            load_tokenizer(request.tokenizer),
            workers=2,
            overwrite=request.overwrite,
            sizes=Sizes(chunk_bytes=2000, long_line_bytes=10_000),
            shard_bytes=8000,
            on_note=say,
        )
    except DataError as error:
        say(error)
        return 2
    except BaseException:
        say(traceback.format_exc())
        return 1
    say(next(calls))
    return 0


def serve(request: Request) -> Outcome:
    """Build in a process of its own."""
    with tempfile.TemporaryFile("w+") as said:
        process = os.fork()
        if process == 0:
            os._exit(build(request, lambda line: print(line, file=said, flush=True)))
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said.seek(0)
        lines = said.read().splitlines()
    return Outcome(status, "\n".join(lines), int(lines[-1]) if status == 0 else 0)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(serve(Request(*json.loads(line)))), flush=True)
