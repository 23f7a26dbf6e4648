"""Work by several threads on a stream, its results committed one by one in the stream's order.

In: an iterator, a function to apply, a function to commit with. Knows nothing of what the items are. The threads take
items from the iterator themselves, one at a time, and whichever finds the next result in order commits it, so that
no thread exists only to hand things on; the calling thread waits, where an interrupt (Ctrl-C) finds it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

_PROGRESS_SECONDS = 0.1
_PATIENCE_SECONDS = 5.0

T = TypeVar("T")
R = TypeVar("R")


class _Failure(NamedTuple):
    error: BaseException


def run_in_order(
    items: Iterator[T],
    make_worker: Callable[[], Callable[[T], R]],
    commit: Callable[[R], None],
    workers: int,
    ahead: int,
    on_progress: Callable[[], None] | None = None,
) -> None:
    """Apply a worker's function to each of `items` and give the results to `commit`, in order, never two at once.

    `make_worker` is called once in each of the `workers` threads. At most `ahead` items are taken and not committed, so
    memory is bounded. `on_progress` is called now and then by the calling thread.

    The first error in the order of the items, wherever it comes from, is raised after what comes before it has been
    committed; nothing after it is, and no further item is taken. An interrupt of the calling thread stops all threads
    after the item each is at, and is raised. Nothing is committed any more once this has returned; a thread that does
    not come back from its item, or from waiting for the next one (standard input may never end), is left behind.
    """
    assert workers >= 1, workers
    assert ahead >= workers, (ahead, workers)
    ordered = _Ordered(items, commit, workers, ahead)
    threads = [
        threading.Thread(target=ordered.work, args=(make_worker,), name=f"worker-{number}", daemon=True)
        for number in range(workers)
    ]
    started = 0
    try:
        for thread in threads:
            thread.start()
            started += 1
        while not ordered.wait(None if on_progress is None else _PROGRESS_SECONDS):
            if on_progress is not None:
                on_progress()
    finally:
        ordered.stop()
        patient_until = time.monotonic() + _PATIENCE_SECONDS
        try:
            for thread in threads[:started]:
                thread.join(max(patient_until - time.monotonic(), 0))
        finally:  # a second interrupt ends the patience, but what a commit writes to must not be closed under it
            ordered.wait_for_commit()
    if ordered.error is not None:
        raise ordered.error


class _Ordered(Generic[T, R]):
    """What the threads share. `_taking` guards the iterator; `_state` everything else."""

    def __init__(self, items: Iterator[T], commit: Callable[[R], None], workers: int, ahead: int) -> None:
        self.error: BaseException | None = None
        self._items = items
        self._commit = commit
        self._ahead = ahead
        self._taking = threading.Lock()
        self._state = threading.Condition(threading.RLock())
        self._taken = 0
        self._committed = 0
        self._results: dict[int, R | _Failure] = {}
        self._committing = False
        self._no_more = False  # take no further item
        self._stopped = False  # commit no further result
        self._working = workers  # threads that have not ended
        self._done = threading.Event()

    def wait(self, seconds: float | None) -> bool:
        """Whether all threads have ended or there is an error, waiting for it at most `seconds`."""
        return self._done.wait(seconds)

    def wait_for_commit(self) -> None:
        """Return when no thread is committing; after `stop`, none will begin to."""
        with self._state:
            while self._committing:
                self._state.wait()

    def stop(self) -> None:
        """Take and commit nothing more."""
        with self._state:
            self._no_more = self._stopped = True
            self._state.notify_all()

    def work(self, make_worker: Callable[[], Callable[[T], R]]) -> None:
        """A thread's life."""
        try:
            self._work(make_worker())
        except BaseException as error:
            self._fail(error)
        finally:
            with self._state:
                self._working -= 1
                if self._working == 0:
                    self._done.set()

    def _work(self, apply: Callable[[T], R]) -> None:
        while (taken := self._take()) is not None:
            number, item = taken
            result: R | _Failure
            try:
                result = item if isinstance(item, _Failure) else apply(item)
            except BaseException as error:
                result = _Failure(error)
            del item, taken
            self._deliver(number, result)

    def _take(self) -> tuple[int, T | _Failure] | None:
        with self._taking:
            with self._state:
                while self._taken - self._committed >= self._ahead and not self._no_more:
                    self._state.wait()
                if self._no_more:
                    return None
            item: T | _Failure
            try:
                item = next(self._items)
            except StopIteration:
                with self._state:
                    self._no_more = True
                return None
            except BaseException as error:
                item = _Failure(error)
            self._taken += 1
            return self._taken - 1, item

    def _deliver(self, number: int, result: R | _Failure) -> None:
        with self._state:
            self._results[number] = result
            if isinstance(result, _Failure):
                self._no_more = True
                self._state.notify_all()
            if self._committing:
                return  # that thread will find it
            self._committing = True
        while (ready := self._next_ready()) is not None:
            try:
                self._commit(ready)
            except BaseException:
                self._end_committing()
                raise
            with self._state:
                self._committed += 1
                self._state.notify_all()

    def _next_ready(self) -> R | None:
        """The next result in order; None, and committing ends, where it is not there or there is an error."""
        with self._state:
            ready = self._results.pop(self._committed, None)
            if isinstance(ready, _Failure):
                self.error = self.error or ready.error
                self._stopped = True
                self._done.set()
            if ready is None or self._stopped:
                self._end_committing()
                return None
            return ready  # type: ignore[return-value]

    def _fail(self, error: BaseException) -> None:
        """An error that belongs to no item: from `commit`, or a worker that could not be made."""
        with self._state:
            self.error = self.error or error
            self._no_more = self._stopped = True
            self._state.notify_all()
            self._done.set()

    def _end_committing(self) -> None:
        with self._state:
            self._committing = False
            self._state.notify_all()
