"""Saving behind the training, on one rank: what is in the file, who waits for whom, and what is said of a failure."""

import gc
import io
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from megagpt.checkpoint import save
from megagpt.checkpoint.host_copy import HostCopy
from megagpt.checkpoint.pieces import KINDS
from megagpt.checkpoint.read import find_checkpoint, read_manifest, read_model
from megagpt.checkpoint.save import CheckpointContents
from megagpt.checkpoint.tensor_file import write_tensors
from megagpt.config import CheckpointSection
from megagpt.errors import CheckpointError
from megagpt.parallel.mesh import Mesh, build_mesh, destroy_mesh
from megagpt.training import saver as saver_module
from megagpt.training.saver import Saver
from tests.unit.checkpoint.samples import sample_contents


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    yield build_mesh(1, 1)
    destroy_mesh()
    gc.collect()  # a group that is collected in a forked process ends that: its threads are not there


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=400)


def saver_of(folder: Path, mesh: Mesh, console: Console, **settings) -> Saver:
    return Saver(folder, CheckpointSection(**settings), 12_000_000, mesh, console)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def change(contents: CheckpointContents) -> None:
    for piece in contents.pieces:
        for kind in KINDS:
            piece.tensor(kind).fill_(-1)


def held_writes(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Each of the two files of a save is written once the semaphore lets it."""
    may_write = threading.Semaphore(0)

    def write_when_allowed(*arguments):
        assert may_write.acquire(timeout=60)
        return write_tensors(*arguments)

    monkeypatch.setattr(save, "write_tensors", write_when_allowed)
    return may_write


def soon(action: Callable[..., object], *arguments: object) -> None:
    threading.Timer(0.2, action, arguments).start()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_file_holds_the_values_of_its_moment(tmp_path, mesh, console, monkeypatch, asynchronous):
    """Masters change while the writer is slow: what is read back is what they were."""
    may_write = held_writes(monkeypatch)
    saver = saver_of(tmp_path, mesh, console, asynchronous=asynchronous)
    contents = sample_contents(3)
    if not asynchronous:
        may_write.release(2)
    saver.begin(contents)
    saver.finish_snapshot()
    change(contents)
    saver.report()
    assert (tmp_path / "latest").exists() != asynchronous
    may_write.release(2)
    saver.finish()
    wanted = {piece.name: piece.master for piece in sample_contents(3).pieces}
    found = read_model(tmp_path).parameters
    assert all(torch.equal(found[name].reshape(-1), value) for name, value in wanted.items())
    assert re.fullmatch(
        rf"saved {tmp_path}/step-00000003 \(12\.0 MB in \d+\.\d\d s, [\d,]+ MB/s; training waited \d+\.\d\d s\)\n",
        said(console),
    )


def test_the_update_waits_for_the_copy(tmp_path, mesh, console, monkeypatch):
    real, may_copy = HostCopy.take, threading.Event()

    def copy_when_allowed(*arguments):
        assert may_copy.wait(60)
        return real(*arguments)

    monkeypatch.setattr(HostCopy, "take", copy_when_allowed)
    saver = saver_of(tmp_path, mesh, console)
    contents = sample_contents(3)
    saver.begin(contents)  # does not wait
    soon(may_copy.set)
    saver.finish_snapshot()
    assert may_copy.is_set()
    change(contents)
    saver.finish()
    assert not (read_model(tmp_path).parameters["final_norm.bias"] == -1).any()


def test_a_save_that_is_still_being_written_is_waited_for(tmp_path, mesh, console, monkeypatch):
    may_write = held_writes(monkeypatch)
    saver = saver_of(tmp_path, mesh, console, keep=9)
    for step in (1, 2, 3):
        saver.begin(sample_contents(step))
        saver.finish_snapshot()
        saver.report()
        assert not (tmp_path / f"step-{step:08d}").exists()
        soon(may_write.release, 2)
    assert find_checkpoint(tmp_path).name == "step-00000002"
    saver.finish()
    assert find_checkpoint(tmp_path).name == "step-00000003"
    lines = said(console).splitlines()
    waited = [line for line in lines if line.startswith("training waited")]
    assert len(waited) == 1, "said once"
    assert re.search(r"waited 0\.\d s: the checkpoint of step 1 was still being written .*interval_steps", waited[0])
    assert [line.split()[1][-1] for line in lines if line.startswith("saved")] == ["1", "2", "3"], "in their order"
    for step in (1, 2, 3):
        assert read_manifest(tmp_path / f"step-{step:08d}").step == step


def test_host_memory_is_used_again(tmp_path, mesh):
    host = HostCopy(mesh.device)
    addresses = []
    for step in (1, 2):
        pieces = host.take(sample_contents(step).pieces, host.mark())
        addresses.append([piece.tensor(kind).data_ptr() for piece in pieces for kind in KINDS])
    assert addresses[0] == addresses[1]
    smaller = host.take(sample_contents(1).pieces[:2], host.mark())
    assert all(
        torch.equal(copy.tensor(kind), piece.tensor(kind))
        for copy, piece in zip(smaller, sample_contents(1).pieces, strict=False)
        for kind in KINDS
    )


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_save_is_said_and_the_next_is_tried(tmp_path, mesh, console, monkeypatch, asynchronous):
    saver = saver_of(tmp_path / "[try]", mesh, console, asynchronous=asynchronous)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(save, "write_tensors", fail)
        saver.begin(sample_contents(4))
        while not said(console):
            saver.report()
    printed = said(console)
    assert printed.startswith("checkpoint after step 4 failed: rank 0 could not write ")
    assert "[try]/step-00000004.writing" in printed
    assert "No space left on device" in printed
    assert printed.endswith("; training goes on\n")
    saver.begin(sample_contents(6))
    saver.finish()
    assert find_checkpoint(tmp_path / "[try]").name == "step-00000006"
    assert "saved" in said(console)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_last_save_is_an_error(tmp_path, mesh, console, monkeypatch, asynchronous):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_tensors", fail)
    saver = saver_of(tmp_path, mesh, console, asynchronous=asynchronous)
    saver.begin(sample_contents(4))
    with pytest.raises(CheckpointError, match="No space left on device; free space or give"):
        saver.finish()
    saver.finish()  # nothing is under way any more
    saver.begin(sample_contents(6))
    saver.settle()  # another error ends training
    assert re.search(r"after step 6 failed: .*; the one before it stays\n$", said(console))


def test_a_rank_that_is_gone_is_no_failed_save(tmp_path, mesh, console, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(saver_module, "save_checkpoint", fail)
    for call in (Saver.report, Saver.finish):
        saver = saver_of(tmp_path, mesh, console, asynchronous=False)
        saver.begin(sample_contents(4))
        with pytest.raises(RuntimeError, match="Connection closed by peer"):
            call(saver)


def test_no_host_memory_for_the_copy(tmp_path, mesh, console, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(HostCopy, "take", fail)
    saver = saver_of(tmp_path, mesh, console)
    saver.begin(sample_contents(4))
    saver.finish_snapshot()
    with pytest.raises(CheckpointError, match=r"rank 0 could not copy its part .*can't allocate.*asynchronous = false"):
        saver.finish()


def test_nothing_to_wait_for(tmp_path, mesh, console):
    saver = saver_of(tmp_path, mesh, console)
    for call in (saver.finish_snapshot, saver.report, saver.settle, saver.finish):
        call()
    assert said(console) == ""
