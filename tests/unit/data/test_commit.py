"""Work by several threads is committed in order, whatever fails and whenever."""

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from megagpt.data.commit import run_in_order


def worker(apply: Callable[[int], int]) -> Callable[[], Callable[[int], int]]:
    return lambda: apply


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_never_two_at_once(workers: int) -> None:
    seen: list[int] = []
    inside = threading.Lock()

    def slow(item: int) -> int:
        time.sleep(random.random() * 0.002)
        return item * 10

    def commit(result: int) -> None:
        assert inside.acquire(blocking=False), "two commits at once"
        seen.append(result)
        time.sleep(random.random() * 0.001)
        inside.release()

    run_in_order(iter(range(100)), worker(slow), commit, workers, ahead=2 * workers)
    assert seen == list(range(0, 1000, 10))


def test_each_thread_makes_its_own_worker() -> None:
    made: list[str] = []

    def make() -> Callable[[int], int]:
        made.append(threading.current_thread().name)
        return lambda item: item

    run_in_order(iter(range(50)), make, lambda _: None, 3, ahead=6)
    assert sorted(made) == ["worker-0", "worker-1", "worker-2"]


def test_reading_ahead_is_bounded() -> None:
    taken: list[int] = []
    committed: list[int] = []
    widest = 0

    def source() -> Iterator[int]:
        nonlocal widest
        for item in range(40):
            taken.append(item)
            widest = max(widest, len(taken) - len(committed))
            yield item

    def first_is_slow(item: int) -> int:
        if item == 0:
            time.sleep(0.1)
        return item

    run_in_order(source(), worker(first_is_slow), committed.append, 3, ahead=5)
    assert committed == list(range(40))
    assert widest == 5, "as far as allowed, no further"


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_in_order_is_raised_after_what_is_before_it(workers: int) -> None:
    committed: list[int] = []
    started: list[int] = []

    def fail(item: int) -> int:
        started.append(item)
        if item == 7:  # later in order, sooner in time
            raise ValueError("seven")
        if item == 5:
            time.sleep(0.05)
            raise ValueError("five")
        return item

    with pytest.raises(ValueError, match="five"):
        run_in_order(iter(range(1000)), worker(fail), committed.append, workers, ahead=3 * workers)
    assert committed == [0, 1, 2, 3, 4]
    assert len(started) <= 7 + workers, "nothing is taken after an error"


def test_an_error_of_the_source() -> None:
    def source() -> Iterator[int]:
        yield from range(4)
        raise OSError("unreadable")

    committed: list[int] = []
    with pytest.raises(OSError, match="unreadable"):
        run_in_order(source(), worker(lambda item: item), committed.append, 2, ahead=4)
    assert committed == [0, 1, 2, 3]


def test_an_error_of_committing() -> None:
    def commit(result: int) -> None:
        if result == 3:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_in_order(iter(range(100)), worker(lambda item: item), commit, 3, ahead=9)


def test_a_worker_that_cannot_be_made() -> None:
    def make() -> Callable[[int], int]:
        raise RuntimeError("no encoder")

    with pytest.raises(RuntimeError, match="no encoder"):
        run_in_order(iter(range(100)), make, lambda _: None, 2, ahead=4)


def test_nothing_to_do() -> None:
    run_in_order(iter(()), worker(lambda item: item), lambda _: None, 2, ahead=4)


def test_an_interrupt_stops_the_threads() -> None:
    committed: list[int] = []
    before = threading.active_count()

    def slow(item: int) -> int:
        time.sleep(0.01)
        return item

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_order(iter(range(100_000)), worker(slow), committed.append, 2, ahead=4, on_progress=interrupt)
    assert committed == list(range(len(committed)))
    assert threading.active_count() == before
    count = len(committed)
    time.sleep(0.03)
    assert len(committed) == count


def test_progress_is_shown_while_the_threads_work() -> None:
    calls: list[int] = []
    main = threading.get_ident()

    def progress() -> None:
        assert threading.get_ident() == main
        calls.append(1)

    run_in_order(iter(range(4)), worker(lambda item: time.sleep(0.15) or item), lambda _: None, 1, 1, progress)
    assert 2 <= len(calls) <= 8


def test_a_thread_that_never_comes_back_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where standard input stays open after a line that is wrong."""
    monkeypatch.setattr("megagpt.data.commit._PATIENCE_SECONDS", 0.1)
    never = threading.Event()
    committed: list[int] = []

    def source() -> Iterator[int]:
        yield from range(3)
        never.wait()

    def fail(item: int) -> int:
        if item == 2:
            time.sleep(0.1)  # the other thread is waiting for the next item by now
            raise ValueError("two")
        return item

    begun = time.monotonic()
    with pytest.raises(ValueError, match="two"):
        run_in_order(source(), worker(fail), committed.append, 2, ahead=6)
    assert time.monotonic() - begun < 2
    assert committed == [0, 1]
    never.set()


def test_a_commit_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes to must not be closed under it, however impatient we are."""
    monkeypatch.setattr("megagpt.data.commit._PATIENCE_SECONDS", 0.0)
    committing, committed = threading.Event(), []

    def commit(item: int) -> None:
        committing.set()
        time.sleep(0.3)
        committed.append(item)

    def interrupt() -> None:
        if committing.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_order(iter(range(10)), worker(lambda item: item), commit, 2, 4, interrupt)
    assert committed == [0]
    time.sleep(0.4)
    assert committed == [0]
