"""Reads the next step's batch while this one is computed. In: a BatchStream. Out: this rank's micro-batches of a step.

A thread reads; the loop alone says which samples. What it has announced is read ahead; where it then wants another step
(after a rewind) that is read anew, so a batch stays a pure function of the step's place. On CUDA the thread puts the
batch into pinned memory, from which it is copied without the host waiting.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType

import torch

from megagpt.data.batch import Batch
from megagpt.data.stream import BatchStream, cut
from megagpt.plan_batches import StepBatch

_LONGEST_WAIT_SECONDS = 10.0  # for a batch that is being read when training ends


class _Read:
    """One batch: asked for, then read by the thread."""

    def __init__(self, step: StepBatch) -> None:
        self.step = step
        self.done = threading.Event()
        self.batch: Batch | None = None
        self.error: BaseException | None = None

    def run(self, read: Callable[[StepBatch], Batch]) -> None:
        """Read it, in the thread; what goes wrong is for the loop to see."""
        try:
            self.batch = read(self.step)
        except BaseException as error:
            self.error = error
        self.done.set()

    def result(self) -> Batch:
        """Wait for it. Raises what went wrong in reading."""
        self.done.wait()
        if self.error is not None:
            raise self.error
        assert self.batch is not None
        return self.batch


class ReadAhead:
    """The training batches of one rank; reads within `with`."""

    def __init__(self, stream: BatchStream, device: torch.device) -> None:
        self._stream, self._device = stream, device
        self._asked: SimpleQueue[_Read | None] = SimpleQueue()
        self._ahead: _Read | None = None
        self._thread = threading.Thread(target=self._serve, name="read ahead", daemon=True)

    def __enter__(self) -> "ReadAhead":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._asked.put(None)  # ends the thread after what it reads
        # Python ends badly while a thread is in torch; but nobody waits for a disk that does not answer
        self._thread.join(_LONGEST_WAIT_SECONDS)

    def begin(self, step: StepBatch) -> None:
        """Begin to read a step's batch, for `take` to give."""
        self._ahead = _Read(step)
        self._asked.put(self._ahead)

    def take(self, step: StepBatch) -> list[Batch]:
        """This rank's micro-batches of a step, on the device. Raises DataError, whenever it was that reading failed."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.step != step:
            ahead = _Read(step)
            self._asked.put(ahead)
        return cut(ahead.result().to(self._device), step.micro_batch_size)

    def _serve(self) -> None:
        """The thread: reads one batch after another, so that the samples' index has one reader."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # pinning in a thread would otherwise wake the first device
        while (asked := self._asked.get()) is not None:
            asked.run(self._read)

    def _read(self, step: StepBatch) -> Batch:
        whole = self._stream.whole_batch(step)
        return whole.pin_memory() if self._device.type == "cuda" else whole
