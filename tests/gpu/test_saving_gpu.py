"""Copies of a checkpoint's tensors off the GPU and onto it, beside other work. No result has been recorded yet."""

from pathlib import Path
from threading import Thread

import pytest
import torch

from megagpt.checkpoint.host_copy import HostCopy
from megagpt.checkpoint.pieces import KINDS, Copy, Piece
from megagpt.checkpoint.tensor_file import write_tensors
from megagpt.checkpoint.tensor_read import Fill, read_tensors

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZE = 20_000_000


def random_piece() -> Piece:
    return Piece("a", 0, 0, SIZE, *(torch.randn(SIZE, device=DEVICE) for _ in KINDS))


@pytest.mark.parametrize("number", [1, 2])
def test_a_copy_is_of_its_moment(number):
    """It is taken by a thread while the device has more to do; what is given to the device after it is whole waits."""
    piece, host = random_piece(), HostCopy(DEVICE)
    matrix = torch.randn(2000, 2000, device=DEVICE)
    for _ in range(number):
        for kind in KINDS:
            piece.tensor(kind).mul_(1.5)  # still to be done when the moment is marked
        wanted = [piece.tensor(kind).clone() for kind in KINDS]
        found: list[list[Piece]] = []
        moment = host.mark()
        thread = Thread(target=lambda moment=moment, found=found: found.append(host.take([piece], moment)))
        thread.start()
        for _ in range(20):
            matrix = matrix @ matrix / 2000  # the next passes
        thread.join()
        for kind in KINDS:
            piece.tensor(kind).zero_()  # the next update
        copies = [found[0][0].tensor(kind) for kind in KINDS]
        assert all(torch.equal(left.to(DEVICE), right) for left, right in zip(copies, wanted, strict=True))
        assert all(value.is_pinned() == (DEVICE.type == "cuda") for value in copies)
        for kind, value in zip(KINDS, wanted, strict=True):
            piece.tensor(kind).copy_(value)


def test_what_is_written_from_the_gpu_is_read_back_to_it(tmp_path: Path):
    piece = random_piece()
    path = tmp_path / "a.safetensors"
    record = write_tensors(path, {kind: piece.tensor(kind) for kind in KINDS})
    target = {kind: torch.zeros(SIZE, device=DEVICE) for kind in KINDS}
    copy = Copy((0, SIZE), (0, SIZE), 1, SIZE)
    read_tensors(path, [Fill(kind, SIZE, copy, target[kind]) for kind in KINDS], record, verify=True)
    assert all(torch.equal(target[kind], piece.tensor(kind)) for kind in KINDS)
