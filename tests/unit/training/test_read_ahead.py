"""Reading a step ahead: the same batches in the same order, whatever the loop changes its mind to; errors; the end."""

import contextlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megagpt.data.sample_skips import SampleSkip, after_skips
from megagpt.data.stream import BatchStream
from megagpt.errors import DataError
from megagpt.plan_batches import StepBatch
from megagpt.training.read_ahead import ReadAhead

SIZE, LENGTH = 4, 8
CPU = torch.device("cpu")


class Samples:
    """Sample n is LENGTH + 1 tokens that begin at n. Notes which samples were read, and in which thread."""

    samples_per_epoch = 1000

    def __init__(self) -> None:
        self.read: list[int] = []
        self.threads: set[str] = set()
        self.damaged: set[int] = set()

    def tokens_of_many(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        self.read.append(int(samples[0]))
        self.threads.add(threading.current_thread().name)
        if bad := self.damaged.intersection(samples.tolist()):
            raise DataError(f"sample {min(bad)} cannot be read")
        return samples[:, None] + np.arange(LENGTH + 1)


def step_batch(step: int) -> StepBatch:
    return StepBatch(step, step * SIZE, SIZE, 2, 2, step * SIZE * LENGTH)


@pytest.fixture
def samples() -> Samples:
    return Samples()


@pytest.fixture
def reader(samples: Samples) -> Iterator[ReadAhead]:
    with ReadAhead(BatchStream(samples, LENGTH, 0, False, 0, 1), CPU) as reader:
        yield reader


def first_tokens(reader: ReadAhead, step: StepBatch) -> list[int]:
    return [int(token) for batch in reader.take(step) for token in batch.tokens[:, 0]]


def samples_of(step: StepBatch) -> list[int]:
    return list(range(step.first_sample, step.first_sample + SIZE))


def test_batches_are_those_of_the_stream(samples: Samples, reader: ReadAhead) -> None:
    stream = BatchStream(Samples(), LENGTH, 0, False, 0, 1)
    for step in range(5):
        found, wanted = reader.take(step_batch(step)), stream.micro_batches(step_batch(step))
        reader.begin(step_batch(step + 1))
        assert len(found) == len(wanted) == 2
        for one, other in zip(found, wanted, strict=True):
            assert all(torch.equal(*parts) for parts in zip(one[:4], other[:4], strict=True))
    assert samples.threads == {"read ahead"}


def test_each_step_is_read_once_and_before_it_is_asked_for(samples: Samples, reader: ReadAhead) -> None:
    for step in range(6):
        assert first_tokens(reader, step_batch(step)) == samples_of(step_batch(step))
        reader.begin(step_batch(step + 1))
        until = time.monotonic() + 60
        while samples.read[-1] != SIZE * (step + 1) and time.monotonic() < until:
            time.sleep(0.001)  # the step computes
        assert samples.read == [SIZE * number for number in range(step + 2)]


def test_after_a_rewind_other_samples_are_read(samples: Samples, reader: ReadAhead) -> None:
    """Steps 0 to 2, back to before step 1 and on after the samples of step 3: those of step 3 are read for nothing."""
    for step in range(3):
        assert first_tokens(reader, step_batch(step)) == samples_of(step_batch(step))
        reader.begin(step_batch(step + 1))
    skips = (SampleSkip(1, 3 * SIZE),)
    for step in range(1, 4):
        wanted = after_skips(step_batch(step), skips)
        assert first_tokens(reader, wanted) == list(range(SIZE * (step + 3), SIZE * (step + 4)))
        reader.begin(after_skips(step_batch(step + 1), skips))


def test_an_error_is_raised_in_the_step_that_reads_it(samples: Samples, reader: ReadAhead) -> None:
    samples.damaged = {SIZE * 2 + 1}
    for step in range(2):
        assert first_tokens(reader, step_batch(step)) == samples_of(step_batch(step))
        reader.begin(step_batch(step + 1))
    with pytest.raises(DataError, match="sample 9 cannot be read"):
        reader.take(step_batch(2))
    assert first_tokens(reader, step_batch(3)) == samples_of(step_batch(3)), "the thread lives"


def test_an_error_in_samples_that_no_step_reads_does_not_matter(samples: Samples, reader: ReadAhead) -> None:
    samples.damaged = {SIZE}
    reader.take(step_batch(0))
    reader.begin(step_batch(1))
    assert first_tokens(reader, step_batch(5)) == samples_of(step_batch(5))


def leave_with_an_error(samples: Samples) -> threading.Thread:
    """A loop that ends with a batch that nobody takes."""
    with contextlib.suppress(KeyboardInterrupt), ReadAhead(BatchStream(samples, LENGTH, 0, False, 0, 1), CPU) as reader:
        reader.take(step_batch(0))
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "read ahead"]
        reader.begin(step_batch(1))
        raise KeyboardInterrupt
    return thread


def test_the_thread_ends_with_the_loop(samples: Samples) -> None:
    thread = leave_with_an_error(samples)
    thread.join(10)
    assert not thread.is_alive()


def test_documents_kept_apart_come_along(samples: Samples) -> None:
    stream = BatchStream(samples, LENGTH, 5, True, 0, 1)
    with ReadAhead(stream, CPU) as reader:
        found = reader.take(step_batch(0))
    for one, other in zip(found, stream.micro_batches(step_batch(0)), strict=True):
        assert one.documents is not None
        assert other.documents is not None
        assert torch.equal(one.documents, other.documents)
        assert torch.equal(one.loss_mask, other.loss_mask)
