"""Saves checkpoints behind the training: a thread of each rank copies its part to host memory, then writes it.

In: what a rank has to save, between two updates. Out: a checkpoint on the disk, and lines that say so. Masters and
moments change in an update alone, so the copy runs beside the next step's forward and backward passes, and only what is
left of it when the update is due is waited for. The threads agree over a group of their own. They are no daemons, as
Python ends badly while one is in torch; Ctrl-C waits for none of them (cli.py). The loop calls

    begin(contents)         after an update: starts a save, once the one before is written
    finish_snapshot()       before every update: the copy is whole
    report()                after every step: says how a save has ended
    finish()                at the end: the last save is on the disk, or CheckpointError

Every rank makes one Saver and calls these together. With checkpoint.asynchronous = false, `begin` does all of it.
"""

import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from megagpt.checkpoint.host_copy import HostCopy
from megagpt.checkpoint.save import CheckpointContents, save_checkpoint
from megagpt.config import CheckpointSection
from megagpt.errors import CheckpointError
from megagpt.parallel.mesh import Mesh, group_apart


class _Save:
    """One save under way."""

    def __init__(self, contents: CheckpointContents) -> None:
        self.contents = contents
        self.copied = threading.Event()
        self.thread: threading.Thread | None = None  # None: in place
        self.stalled_seconds = self.write_seconds = 0.0
        self.folder: Path | None = None
        self.error: Exception | None = None


class Saver:
    """What one rank saves with."""

    def __init__(
        self, checkpoints: Path, settings: CheckpointSection, checkpoint_bytes: int, mesh: Mesh, console: Console
    ) -> None:
        """Every rank calls it: makes a group. `checkpoint_bytes`: of a whole checkpoint. `console`: rank 0's."""
        self._checkpoints, self._settings, self._checkpoint_bytes = checkpoints, settings, checkpoint_bytes
        self._mesh, self._console = mesh, console
        self._group = group_apart()
        self._host = HostCopy(mesh.device)
        self._save: _Save | None = None
        self._has_warned = False

    def begin(self, contents: CheckpointContents) -> None:
        """Start a save of views of this rank's state. Waits for the save before this one, and reports it."""
        started = time.perf_counter()
        self._wait_for_writer()
        save = self._save = _Save(contents)
        if self._settings.asynchronous:
            moment = self._host.mark()
            save.thread = threading.Thread(target=lambda: self._copy_and_write(save, moment), name="save")
            save.thread.start()
        else:
            save.copied.set()
            self._write(save, contents, None)
        save.stalled_seconds = time.perf_counter() - started

    def finish_snapshot(self) -> None:
        """Wait until this rank's copy is whole: from now on masters and moments may change."""
        save = self._save
        if save is not None and not save.copied.is_set():
            started = time.perf_counter()
            save.copied.wait()
            save.stalled_seconds += time.perf_counter() - started

    def report(self) -> None:
        """Say how the save has ended, if it has. A failure does not end training: the next save is tried.

        Raises what is no CheckpointError: another rank is gone, or a mistake of ours.
        """
        if self._save is None or (self._save.thread is not None and self._save.thread.is_alive()):
            return
        save, self._save = self._save, None
        if save.error is None:
            self._say_saved(save)
        elif isinstance(save.error, CheckpointError):
            self._say_failed(save, "training goes on")
        else:
            raise save.error

    def finish(self) -> None:
        """Wait for the save under way. Raises CheckpointError where it fails: no later one will be tried."""
        self._join()
        error = self._save.error if self._save is not None else None
        if error is not None:
            self._save = None
            raise error
        self.report()

    def settle(self) -> None:
        """Wait for the save under way, before a rewind or where an error ends training, and say how it ended."""
        self._join()
        save, self._save = self._save, None
        if save is not None and save.error is not None:
            self._say_failed(save, "the one before it stays")
        elif save is not None:
            self._say_saved(save)

    def _join(self) -> None:
        if self._save is not None and self._save.thread is not None:
            self._save.thread.join()

    def _wait_for_writer(self) -> None:
        if self._save is None:
            return
        thread = self._save.thread
        if thread is not None and thread.is_alive():
            started = time.perf_counter()
            self._join()
            seconds = time.perf_counter() - started
            if not self._has_warned:
                self._console.print(
                    f"training waited {seconds:.1f} s: the checkpoint of step {self._save.contents.manifest.step} was "
                    "still being written when the next was due (said once); raise checkpoint.interval_steps",
                    highlight=False,
                    soft_wrap=True,
                )
                self._has_warned = True
        self.report()

    def _copy_and_write(self, save: _Save, moment: "torch.cuda.Event | None") -> None:
        """The thread of one save."""
        contents, trouble = save.contents, None
        try:
            contents = replace(contents, pieces=self._host.take(contents.pieces, moment))
        except Exception as error:  # such as too little memory; every rank is told
            trouble = (
                f"rank {self._mesh.rank} could not copy its part to host memory ({error}); use "
                "checkpoint.asynchronous = false, which needs none"
            )
        finally:
            save.copied.set()
        self._write(save, contents, trouble)

    def _write(self, save: _Save, contents: CheckpointContents, trouble: str | None) -> None:
        started = time.perf_counter()
        settings = self._settings
        try:
            save.folder = save_checkpoint(
                self._checkpoints,
                contents,
                self._mesh,
                settings.keep,
                settings.keep_every_steps,
                self._group,
                trouble,
            )
        except Exception as error:  # CheckpointError, or gloo's where another rank is gone
            save.error = error
        save.write_seconds = time.perf_counter() - started

    def _say_failed(self, save: _Save, what_now: str) -> None:
        self._console.print(
            f"[bold red]checkpoint after step {save.contents.manifest.step} failed:[/bold red] "
            f"{escape(str(save.error))}; {what_now}",
            highlight=False,
            soft_wrap=True,
        )

    def _say_saved(self, save: _Save) -> None:
        megabytes = self._checkpoint_bytes / 1e6
        self._console.print(
            f"saved {save.folder} ({megabytes:,.1f} MB in {save.write_seconds:.2f} s, "
            f"{megabytes / save.write_seconds:,.0f} MB/s; training waited {save.stalled_seconds:.2f} s)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
