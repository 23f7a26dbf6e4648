"""A copy of a rank's pieces in host memory, which a save is written from while training goes on.

In: views of masters and moments. Out: the same pieces with tensors that nobody changes. The memory (12 bytes an
element) is taken once and used again by the next copy; with CUDA it is pinned. Knows nothing of files or ranks.
"""

import weakref

import torch
from torch import Tensor

from megagpt.checkpoint.pieces import KINDS, Piece


class HostCopy:
    """The memory for one copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._values = torch.empty(0)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> "torch.cuda.Event | None":
        """The moment that a copy is of: what the calling thread has given the device until now comes before it."""
        if self._stream is None:
            return None
        moment = torch.cuda.Event()
        moment.record(torch.cuda.current_stream(self._device))
        return moment

    def take(self, pieces: list[Piece], moment: "torch.cuda.Event | None") -> list[Piece]:
        """Copy the pieces as they are at `moment`; the last copy is gone. Returns once they are copied.

        In a thread of its own. Raises RuntimeError where there is not enough memory.
        """
        num_values = len(KINDS) * sum(piece.stop - piece.start for piece in pieces)
        if self._values.numel() != num_values:
            self._values = self._new(num_values)
        if self._stream is None:
            return self._copies(pieces)
        assert moment is not None, "a copy from a device is of a moment"
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(moment)
            copied = self._copies(pieces)
            self._stream.synchronize()
        return copied

    def _copies(self, pieces: list[Piece]) -> list[Piece]:
        copied, start = [], 0
        for piece in pieces:
            tensors: list[Tensor] = []
            for kind in KINDS:
                values = piece.tensor(kind)
                host = self._values[start : start + values.numel()]
                host.copy_(values, non_blocking=True)
                tensors.append(host)
                start += values.numel()
            copied.append(Piece(piece.name, piece.tensor_slice, piece.start, piece.stop, *tensors))
        return copied

    def _new(self, num_values: int) -> Tensor:
        self._values = torch.empty(0)  # the memory before goes first
        values = torch.empty(num_values)
        if self._stream is not None and num_values:
            # not torch's own pinned memory, which is rounded up to a power of two
            with torch.cuda.device(self._device):
                failure = int(torch.cuda.cudart().cudaHostRegister(values.data_ptr(), values.nbytes, 0))
            if failure:
                raise RuntimeError(f"CUDA error {failure} pinning {values.nbytes / 2**20:,.0f} MiB of host memory")
            weakref.finalize(values, _unpin, values.data_ptr())
        return values


def _unpin(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)
