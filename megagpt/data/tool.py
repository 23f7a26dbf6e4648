"""How a verb of the command line is described and run. In: a verb and its arguments. Out: an exit status.

The entry points in data_tools/ and the `megagpt` command run the same verbs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from megagpt.cli import status_of
from megagpt.errors import DataError


class Verb(NamedTuple):
    """A verb: one line of help, its arguments, and what it does (parsed arguments to exit status)."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def run_tool(verb: Verb, argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (default: the command line) and run `verb`; the exit status, as of the `megagpt` command."""
    parser = argparse.ArgumentParser(
        description=verb.help, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    verb.add_arguments(parser)
    return status_of(lambda: verb.run(parser.parse_args(argv)))


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def unicode_text(text: str) -> str:
    """An argparse type: text, not bytes of another encoding, as which a shell may hand an argument over."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"the argument {text!a} is not UTF-8; give it in UTF-8, perhaps in another locale") from error
    return text


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every verb that reads a corpus."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="corpus: files (.jsonl, .jsonl.gz, .jsonl.zst, .json.gz, .json.zst, .txt, .parquet), folders, globs, - "
        "for JSONL on stdin, or hf:NAME[:CONFIG[:SPLIT]] for a Hugging Face dataset",
    )
    parser.add_argument(
        "--text-key", type=unicode_text, default="text", help="key or column of the text in JSONL and parquet"
    )
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="a document that cannot be read: stop (raise), or count it, report it and go on (skip)",
    )


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """A bar on standard error, shown on a terminal only; call it with (done, total or None, detail)."""
    if not sys.stderr.isatty():
        yield lambda done, total, detail: None
        return
    from rich.console import Console  # lazily: importing it takes longer than building a small dataset
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), TextColumn("{task.fields[detail]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, detail="")
        yield lambda done, total, detail: progress.update(task, completed=done, total=total, detail=detail)
