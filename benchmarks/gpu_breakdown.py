"""Where one step's time goes, by groups of kernels, from torch's profiler.

In: a step to run. Out: seconds of each group; on CUDA of kernels, and of the time in which none ran; on the CPU of
operators, and of what lies between them.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from megagpt.training.profile_groups import Group, kernel_group, operator_group


@contextmanager
def profiled(found: dict[str, float]) -> Iterator[None]:
    """Profiles what runs within; fills `found` with the seconds of each group."""
    on_cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    if on_cuda:
        torch.cuda.synchronize()
    with profile(activities=activities, acc_events=True) as profiler:
        yield
        if on_cuda:
            torch.cuda.synchronize()
    events = list(profiler.events())
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    found.update(_of_kernels(kernels) if on_cuda else _of_operators(events))


def _of_kernels(kernels: list[Any]) -> dict[str, float]:
    seconds: Counter[str] = Counter()
    spans = []
    for kernel in kernels:
        if getattr(kernel, "is_user_annotation", False) or "#" in kernel.name:  # a range, not work
            continue
        group = kernel_group(kernel.name)
        spans.append((kernel.time_range.start, kernel.time_range.end))
        seconds[group.value] += (kernel.time_range.end - kernel.time_range.start) / 1e6
    seconds[Group.HOST.value] += idle_us(spans) / 1e6
    return dict(seconds)


def idle_us(spans: list[tuple[float, float]]) -> float:
    """Time between the first start and the last end that no span covers."""
    idle, end = 0.0, None
    for start, stop in sorted(spans):
        if end is not None:
            idle += max(0.0, start - end)
        end = stop if end is None else max(end, stop)
    return idle


def _of_operators(events: list[Any]) -> dict[str, float]:
    seconds: Counter[str] = Counter()
    for event in events:
        seconds[operator_group(event.name).value] += event.self_cpu_time_total / 1e6
    return dict(seconds)
