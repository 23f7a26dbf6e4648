"""Every tensor storage of a run from birth to death, and how much memory each part of the run held at any time.

In: storages as operations make them, and marks that say what the run is doing and which storages are its weights,
gradients and optimizer state. Out: MemoryUse. A storage counts with its whole size while anything refers to it; what
an allocator rounds up or keeps back is not seen.
"""

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "temporary")
HOST = "host"  # not on the GPU


class Doing(NamedTuple):
    """What the run does from `since` on, until the next one."""

    since: int  # storages born before it
    kind: str  # build, forward, backward, between (passes of the schedule), step (before and after the schedule)
    label: str


class MemoryPeak(NamedTuple):
    """The most memory of a stretch of the run, and when that was."""

    total_bytes: int
    by_part: dict[str, int]  # at that time
    label: str  # what the run was doing


@dataclass(frozen=True)
class MemoryUse:
    """Bytes by part over a stretch of a run."""

    peak: MemoryPeak
    most_by_part: dict[str, int]  # of each part, at its own peak
    host_bytes: int  # most in host memory, where state is offloaded to


class _Life:
    """One storage. Times count births and deaths; `died` None: still alive."""

    __slots__ = ("born", "died", "doing", "hint", "size", "state")

    def __init__(self, born: int, size: int, doing: Doing, hint: str | None) -> None:
        self.born, self.size, self.doing, self.hint = born, size, doing, hint
        self.died: int | None = None
        self.state: str | None = None


class StorageLog:
    """Storages of one rank. `logit_widths`: columns that logits can have; the table has as many rows."""

    def __init__(self, logit_widths: frozenset[int]) -> None:
        self.in_head = False  # between the output head's input and the loss, in either direction
        self.in_recompute = False  # within a forward pass that is run again in a backward pass
        self.on_host = False
        self._logit_widths = logit_widths
        self._clock = 0
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], _Life]] = {}
        self._lives: list[_Life] = []
        self._doings: list[Doing] = [Doing(0, "build", "building the model")]
        self._forward_ends: list[int] = []  # clock at the end of each forward pass, or of one that was run again
        self._schedule_ends: list[int] = []

    @property
    def clock(self) -> int:
        """Births and deaths so far."""
        return self._clock

    @property
    def in_backward(self) -> bool:
        """A backward pass runs."""
        return self._doings[-1].kind == "backward"

    def do(self, kind: str, label: str) -> None:
        """The run begins something."""
        if self._doings[-1].kind == "forward":
            self._forward_ends.append(self._clock)
        self.in_head = self.in_recompute = False
        if kind == "step" and self._doings[-1].kind in ("forward", "backward", "between"):
            self._schedule_ends.append(self._clock)
        self._doings.append(Doing(self._clock, kind, label))

    def end_recompute(self) -> None:
        """A forward pass that was run again has ended."""
        self.in_recompute = False
        self._forward_ends.append(self._clock)

    def see(self, tensor: Tensor) -> None:
        """An operation gave this tensor; its storage may be new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._clock += 1
        life = _Life(self._clock, storage.nbytes(), self._doings[-1], self._hint(tensor))
        self._alive[key] = (weakref.ref(storage, self._death_of(key, life)), life)
        self._lives.append(life)

    def mark(self, part: str, tensors: Iterable[Tensor]) -> None:
        """These tensors' storages are of a part that is known: weights, gradients, optimizer, or HOST."""
        for tensor in tensors:
            self.see(tensor)
            self._alive[tensor.untyped_storage()._cdata][1].state = part

    def use(self, first: int, last: int) -> MemoryUse:
        """Memory between two values of `clock`."""
        events = []
        for life in self._lives:
            part = self._part_of(life)
            died = self._clock + 1 if life.died is None else life.died
            if life.size and life.born <= last and died > first:
                events += [(max(life.born, first), part, life.size), (died, part, -life.size)]
        events.sort(key=lambda event: (event[0], event[2]))
        now = dict.fromkeys((*PARTS, HOST), 0)
        most = dict(now)
        peak, peak_parts, peak_time = 0, dict.fromkeys(PARTS, 0), first
        total = 0
        for time, part, size in events:
            if time > last:
                break
            now[part] += size
            most[part] = max(most[part], now[part])
            if part != HOST:
                total += size
            if total > peak:
                peak, peak_parts, peak_time = total, {name: now[name] for name in PARTS}, time
        host = most.pop(HOST)
        return MemoryUse(MemoryPeak(peak, peak_parts, self._label_at(peak_time)), most, host)

    def _hint(self, tensor: Tensor) -> str | None:
        if self.on_host:
            return HOST
        if self.in_head and tensor.dim() == 2 and not self._logit_widths.isdisjoint(tensor.shape):
            return "logits"
        return "recompute" if self.in_recompute else None

    def _part_of(self, life: _Life) -> str:
        """A storage without a mark is an activation if it is born in the schedule and outlives a forward pass there.

        What outlives the schedule is a buffer that megatron-core or DeepSpeed keeps: temporary, like all the rest.
        """
        if life.state is not None:
            return life.state
        if life.hint in ("logits", HOST):
            return life.hint
        died = self._clock + 1 if life.died is None else life.died
        if life.doing.kind not in ("forward", "between") and life.hint != "recompute":
            return "temporary"
        end = bisect_right(self._schedule_ends, life.born)
        if end < len(self._schedule_ends) and died > self._schedule_ends[end]:
            return "temporary"
        pass_end = bisect_right(self._forward_ends, life.born - 1)
        kept = pass_end < len(self._forward_ends) and died > self._forward_ends[pass_end]
        return "activations" if kept else "temporary"

    def _label_at(self, time: int) -> str:
        place = bisect_right(self._doings, time - 1, key=lambda doing: doing.since)
        return self._doings[max(place - 1, 0)].label

    def _death_of(self, key: int, life: _Life) -> Callable[[object], None]:
        def die(_: object) -> None:
            self._clock += 1
            life.died = self._clock
            self._alive.pop(key, None)

        return die
