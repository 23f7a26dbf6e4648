"""Sees every tensor operation of a run: feeds the log of storages and the counts of collectives.

For fake tensors, which have no values, it answers the questions of a step's code: all is finite, nothing overflowed.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from megagpt.parallel.mesh import Mesh
from megagpt.parallel.trace import StepTracer
from megagpt.plan_schedule import Pass
from megagpt.rehearse.collectives import Collective, name_groups, read_call
from megagpt.rehearse.storages import StorageLog

aten = torch.ops.aten
# tests whose outcome in a healthy step is no: something is NaN, infinite, or true anywhere among such signs
_ANSWERED_NO = {aten.isnan.default, aten.isinf.default, aten.any.default, aten.any.dim}


class Watch(TorchDispatchMode):
    """Active within `with`. `during` says what the run does; collectives are counted by it."""

    def __init__(self, mesh: Mesh, storages: StorageLog, gathers_weights: bool = False) -> None:
        super().__init__()
        self.storages = storages
        self._gathers_weights = gathers_weights  # ZeRO 3: a parameter's storage is a weight from when it is used
        self.collectives: Counter[Collective] = Counter()
        self._during = "build"
        self._group_names = name_groups(mesh)

    def do(self, kind: str, label: str) -> None:
        """The run begins something: build, forward, backward, between or step."""
        self._during = kind
        self.storages.do(kind, label)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], FakeTensor):
            if func is aten._local_scalar_dense.default:
                return _answer(args[0])
            if func is aten.nonzero.default:  # of ranks with a bad loss: none
                return args[0].new_empty((0, args[0].dim()), dtype=torch.int64)
        if func.namespace == "c10d":
            call = (*args, *kwargs.values())
            self.collectives[read_call(func, call, self._group_names, self._during)] += 1
        if self._gathers_weights:
            self.storages.mark("weights", (part for part in args if isinstance(part, nn.Parameter)))
        result = func(*args, **kwargs)
        self._see(result)
        if func in _ANSWERED_NO:
            result._answer_no = True
        return result

    def _see(self, result: Any) -> None:
        if isinstance(result, Tensor):
            self.storages.see(result)
        elif isinstance(result, (list, tuple)):
            for part in result:
                self._see(part)


def _answer(tensor: FakeTensor) -> bool | int | float:
    """The single value of a fake tensor, as a healthy step has it: true, one, or, for a flag of overflow, zero."""
    if tensor.dtype == torch.bool:
        return not hasattr(tensor, "_answer_no")
    if tensor.dtype == torch.uint8:  # DeepSpeed's flags of overflow (zero/stage_1_and_2.py, has_overflow)
        return 0
    return 1.0 if tensor.dtype.is_floating_point else 1


class PassWatch(StepTracer):
    """Tells a Watch where each pass begins and ends, and keeps their order. One step's tracer."""

    def __init__(self, mesh: Mesh, watch: Watch, head_chunk: int | None) -> None:
        super().__init__(0, mesh)
        self._watch, self._head_chunk = watch, head_chunk

    @property
    def order(self) -> tuple[Pass, ...]:
        """The passes that have ended, in order."""
        return tuple(event for event, _, _ in self._marks)

    def start(self) -> None:
        """The schedule begins; unlike a trace with times, ranks need not begin together."""
        self._origin = self._now()
        self._watch.do("between", "between passes")

    def end(self) -> None:
        """The schedule has ended."""
        super().end()
        self._watch.do("step", "after the schedule")

    def follow(self, chunk: int, micro_batch: int, output: Tensor) -> None:
        """Also: the backward pass of the output head begins with the loss."""
        super().follow(chunk, micro_batch, output)
        if chunk == self._head_chunk and output.requires_grad:
            output.register_hook(lambda _: self._enter_head())

    def timer(self, name: str, log_level: int | None = None) -> Any:
        """What megatron-core calls as `config.timers`."""
        timer = super().timer(name, log_level)
        kind = name.removesuffix("-compute")
        if kind == name:
            return timer

        def open_pass() -> None:
            self._watch.do(kind, f"{kind} pass {len(self._marks) + 1}")
            timer.open()

        def close_pass() -> None:
            timer.close()
            self._watch.do("between", "between passes")

        return type(timer)(open_pass, close_pass)

    def _enter_head(self) -> None:
        self._watch.storages.in_head = True
