"""train.log of a run folder: all that rank 0 prints, in every session, as plain text without progress bars.

In: what goes to a rich console. Out: lines of the file.
"""

import io
from pathlib import Path

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control

from megagpt.training.run_files import CarefulWriter

LOG_FILE = "train.log"
_WIDTH = 160


class RunLog(RenderHook):
    """Appends to RUN/train.log what a console prints, once it is pushed there as a render hook. Rank 0 alone."""

    def __init__(self, folder: Path, writer: CarefulWriter) -> None:
        self._path, self._writer = folder / LOG_FILE, writer

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Called by the console with what it is about to print; a progress bar arrives as Control alone."""
        printed = [renderable for renderable in renderables if not isinstance(renderable, Control)]
        if printed:
            page = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False)
            for renderable in printed:
                page.print(renderable, soft_wrap=True)
            self._append(page.file.getvalue())  # type: ignore[attr-defined]
        return renderables

    def line(self, text: str) -> None:
        """Add a line that is not printed, or not on this console."""
        self._append(text + "\n")

    def _append(self, text: str) -> None:
        def append() -> None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)

        self._writer.write(self._path, append)
