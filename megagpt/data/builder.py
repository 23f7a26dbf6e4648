"""From a corpus to an indexed dataset. In: corpus files and a tokenizer. Out: PREFIX.bin, .idx and .json, and a report.

Each document becomes its token ids and the end-of-document id. Threads take chunks of the input, encode them, and
append the results in order; what a shard of input became is committed with a journal line, so that a build that was
stopped in any way goes on where it was, to the same bytes. Memory is bounded. Never imports torch.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from megagpt.data.build_finish import (
    discard,
    publish,
    sidecar_of,
    write_index_of,
    write_sidecar,
)
from megagpt.data.build_input import Encoding, Reading, with_sample, work
from megagpt.data.build_report import (
    BuildProgress,
    BuildReport,
    Written,
    disk_full,
    in_words,
    no_documents,
    skipped_lines,
)
from megagpt.data.build_resume import (
    Position,
    changed_inputs,
    check_same_request,
    input_state,
    position_after,
    verify_written,
)
from megagpt.data.commit import run_in_order
from megagpt.data.corpus import OnError, corpus_files
from megagpt.data.encoders import Engine, make_engine
from megagpt.data.indexed import token_dtype
from megagpt.data.journal import Committed, Finish, Journal, Plan, Record, Share
from megagpt.data.parts import task_output
from megagpt.data.shard_writer import BuildFiles, Done, ShardWriter, build_files, done_with
from megagpt.data.sources import SIZES, Sizes, assign_ranges
from megagpt.durable import FULL_DISK, flush_folder
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer

__all__ = ["SHARD_BYTES", "BuildProgress", "BuildReport", "build_dataset"]

SHARD_BYTES = 64 << 20  # of input content
_AHEAD_PER_WORKER = 2  # chunks taken and not committed


def print_note(note: str) -> None:
    """Say something to the user while a build goes on."""
    print(note, file=sys.stderr)


def build_dataset(
    inputs: Sequence[str],
    output: str | Path,
    tokenizer: Tokenizer,
    text_key: str = "text",
    on_error: OnError = "raise",
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Callable[[BuildProgress], None] | None = None,
    *,
    restart: bool = False,
    task: int = 0,
    num_tasks: int = 1,
    native: bool = True,
    on_note: Callable[[str], None] = print_note,
    sizes: Sizes = SIZES,
    shard_bytes: int = SHARD_BYTES,
) -> BuildReport:
    """Tokenize the documents of `inputs` into the dataset `output` (a prefix); go on with a build that was stopped.

    Documents with empty text are left out and counted. `workers`: threads; the output does not depend on it, nor on how
    often the build was stopped. `restart` forgets what a stopped build has committed. `task` of `num_tasks` takes its
    share of the input and writes to `task_output`; where that has no document, only the .json. `on_progress` is called
    now and then, `on_note` with what the user must know at once.

    Raises DataError for bad input, an output that exists, a full disk, and a stopped build of something else.
    """
    started = time.perf_counter()
    files = corpus_files(inputs)
    shares = assign_ranges(files, task, num_tasks)
    out = build_files(task_output(output, task, num_tasks))
    plan = Plan(
        inputs=tuple(input_state(file.path, file.size_bytes) for file in files),
        shares=tuple(Share(files[share.file].path, share.start, share.stop) for share in shares),
        text_key=text_key,
        on_error=on_error,
        tokenizer_kind=tokenizer.kind,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        task=task,
        num_tasks=num_tasks,
        chunk_bytes=sizes.chunk_bytes,
        long_line_bytes=sizes.long_line_bytes,
        shard_bytes=shard_bytes,
    )
    reading = Reading(files, shares, text_key, on_error, out.spool, sizes)
    how = _How(started, workers, overwrite, restart, native, on_progress, on_note)
    if not out.journal.exists():
        _refuse_existing(out, overwrite)
    with Journal(out.journal) as journal:
        return _Build(out, journal, plan, reading, tokenizer, how).run()


class _How(NamedTuple):
    """What the resulting bytes do not depend on."""

    started: float  # time.perf_counter()
    workers: int
    overwrite: bool
    restart: bool
    native: bool
    on_progress: Callable[[BuildProgress], None] | None
    on_note: Callable[[str], None]


class _Build:
    """One run of a build, with its journal locked."""

    def __init__(
        self, out: BuildFiles, journal: Journal, plan: Plan, reading: Reading, tokenizer: Tokenizer, how: _How
    ) -> None:
        self._out = out
        self._journal = journal
        self._plan = plan
        self._reading = reading
        self._tokenizer = tokenizer
        self._how = how
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._input_bytes = reading.stored_bytes()
        self._committed: list[Committed] = []
        self._done = Done(0, 0, 0)
        self._engine: Engine | None = None

    def run(self) -> BuildReport:
        """Build, or go on."""
        try:
            if self._how.restart:
                self._journal.clear()
                discard(self._out)
            return self._run(self._journal.read())
        except OSError as error:  # wherever it was met: the disk may be full at the first line of the journal
            raise self._failure(error) from error

    def _run(self, record: Record) -> BuildReport:
        self._committed = record.committed
        self._done = done_with(record.committed)
        try:
            if record.finish is None:
                _refuse_existing(self._out, self._how.overwrite)
            position = self._begin(record)
            kept = list(self._committed)
            finish = record.finish or self._build_rest(position)
            self._remove_spool()
            publish(self._out, finish)
            self._journal.remove()
            flush_folder(self._out.bin.parent)
        except KeyboardInterrupt:
            self._how.on_note(f"interrupted{self._kept() or '; nothing was kept'}")
            raise
        finally:
            self._clean_up()
        self._show_progress(self._done._replace(stored_bytes_read=self._input_bytes or 0))
        return self._report(kept, position.stored_bytes_read, finish)

    def _begin(self, record: Record) -> Position:
        """Check that an unfinished build may go on, record what is asked now, and say where to begin."""
        if record.plan is None or not record.committed:
            self._journal.clear()
            discard(self._out)
            self._journal.append(self._plan)
            flush_folder(self._out.bin.parent)
            return Position(0, 0, 0)
        check_same_request(record.plan, self._plan, record.committed, self._out.prefix)
        finished = record.finish is not None
        changed = changed_inputs(record.plan.inputs, self._plan.inputs)
        if finished:  # nothing more is read, so an input that can be read only once need not be there
            files = {state.path for state in self._plan.inputs if state.mtime_ns is not None}
            changed = [path for path in changed if path in files]
        elif changed and self._committed[-1].last:  # the input may have grown, and its last shard with it
            self._committed.pop()
        written = self._out.bin if not finished or self._out.bin.exists() else self._out.targets[0]
        verify_written(self._out, written, self._committed, self._dtype.itemsize, lengths=not finished)
        position = position_after(self._reading, self._committed, changed, complete=finished)
        if not finished:
            self._journal.append(replace(self._plan, num_committed=len(self._committed)))
        if self._committed:
            self._how.on_note(f"going on with the build of {self._out.prefix} after {in_words(self._committed)}")
        return position

    def _build_rest(self, position: Position) -> Finish:
        """Everything from `position` on, up to files that only need their names."""
        try:
            self._out.spool.mkdir(exist_ok=True)
            _empty_folder(self._out.spool)
            with ShardWriter(self._out, self._dtype, self._journal, self._committed, self._plan.shard_bytes) as writer:
                try:
                    self._encode(position, writer)
                finally:
                    self._done = writer.done
                return self._write_rest(writer)
        except DataError as error:
            raise DataError(f"{error}{self._kept()}") from error

    def _failure(self, error: OSError) -> DataError:
        if error.errno in FULL_DISK:
            written = Written(self._done.num_documents, self._done.num_tokens * self._dtype.itemsize)
            return disk_full(self._out.prefix, written, self._done.stored_bytes_read, self._input_bytes, self._kept())
        then = self._kept() or ", then run the same command again"
        return DataError(
            f"building {self._out.prefix} failed: {error}; check the disks of the input and of the output{then}"
        )

    def _encode(self, position: Position, writer: ShardWriter) -> None:
        items, sample = with_sample(self._reading, work(self._reading, *position))
        engine = make_engine(
            self._tokenizer, self._dtype, self._plan.text_key, self._out.spool, sample, native=self._how.native
        )
        self._engine = engine
        if engine.note is not None:
            self._how.on_note(f"warning: this build is slower than it could be: {engine.note}")
        run_in_order(
            items,
            lambda: Encoding(self._reading, engine.encoder(), writer.first_skipped),
            writer.append,
            self._how.workers,
            ahead=_AHEAD_PER_WORKER * self._how.workers + 2,
            on_progress=None if self._how.on_progress is None else lambda: self._show_progress(writer.done),
        )
        writer.finish()

    def _write_rest(self, writer: ShardWriter) -> Finish:
        """The index and the sidecar, while the last shard is brought to the disk."""
        num_documents = writer.done.num_documents
        bin_bytes = idx_bytes = None
        if num_documents:
            bin_bytes = writer.done.num_tokens * self._dtype.itemsize
            idx_bytes = write_index_of(self._out.idx, self._dtype, self._out.lengths, num_documents)
        writer.wait()
        sidecar = sidecar_of(self._plan, self._committed)
        if num_documents == 0 and self._plan.num_tasks == 1:
            self._committed.clear()
            raise no_documents([state.path for state in self._plan.inputs], sidecar, writer.first_skipped)
        for before in self._plan.inputs:
            if before.mtime_ns is not None and input_state(before.path, _size(before.path)) != before:
                raise DataError(
                    f"{before.path} has changed while it was read; run the same command again when nothing writes to "
                    "it: what was read is then compared"
                )
        json_bytes = write_sidecar(self._out.json, sidecar)
        _refuse_existing(self._out, self._how.overwrite)
        finish = Finish(bin_bytes, idx_bytes, json_bytes)
        self._journal.append(finish)
        return finish

    def _clean_up(self) -> None:
        """Remove temporary files, and everything where nothing is committed."""
        self._remove_spool()
        if not self._committed:
            discard(self._out)
            self._journal.remove()

    def _remove_spool(self) -> None:
        if self._out.spool.is_dir():
            _empty_folder(self._out.spool)
            with suppress(OSError):  # a thread that was left behind has put a file there: the next run removes it
                self._out.spool.rmdir()

    def _kept(self) -> str:
        """What to add to a message where something is committed."""
        if not self._committed:
            return ""
        return f"; {in_words(self._committed)} are kept: the same command, run again, goes on after them"

    def _show_progress(self, done: Done) -> None:
        if self._how.on_progress is not None:
            read, documents, tokens = done.stored_bytes_read, done.num_documents, done.num_tokens
            self._how.on_progress(BuildProgress(read, self._input_bytes, documents, tokens))

    def _report(self, kept: list[Committed], stored_bytes_before: int, finish: Finish) -> BuildReport:
        sidecar = sidecar_of(self._plan, self._committed)
        first = {reason: place for record in self._committed for reason, place in record.first_skipped.items()}
        return BuildReport(
            prefix=self._out.prefix,
            num_documents=sidecar.num_documents,
            num_tokens=sidecar.num_tokens,
            text_bytes=sidecar.text_bytes,
            num_characters=sidecar.num_characters,
            max_token_id=sidecar.max_token_id,
            dtype=self._dtype.name,
            bin_bytes=finish.bin_bytes or 0,
            num_shards=len(sidecar.shards),
            seconds=time.perf_counter() - self._how.started,
            input_bytes_read=max(self._done.stored_bytes_read - stored_bytes_before, 0),
            engine=None if self._engine is None else self._engine.name,
            engine_note=None if self._engine is None else self._engine.note,
            workers=self._how.workers,
            kept_shards=len(kept),
            kept_documents=sum(record.shard.num_documents for record in kept),
            skipped=sidecar.skipped,
            skipped_lines=skipped_lines(sidecar.skipped, first),
        )


def _size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.isfile(path) else None


def _refuse_existing(out: BuildFiles, overwrite: bool) -> None:
    existing = [path for path in out.targets if path.exists()]
    if existing and not overwrite:
        raise DataError(f"{existing[0]} exists; choose another output, or replace it with --overwrite")


def _empty_folder(folder: Path) -> None:
    for entry in os.scandir(folder):
        os.unlink(entry)
