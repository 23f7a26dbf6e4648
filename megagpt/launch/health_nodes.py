"""The nodes of a job together: their reports in one place, an all-reduce over all of them, clocks, versions.

In: this node's report and where the nodes meet. Out: on node 0 all reports, with a problem for each node that did not
answer. One process a node calls it; nothing waits longer than it was given.
"""

import json
import time
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from megagpt.launch.health_node import NodeReport

_MOST_SKEW_SECONDS = 1.0
_LARGE_ELEMENTS = {"gloo": 2**20, "nccl": 2**26}  # fp32: 4 and 256 MiB
_REPEATS = 5


class Meeting(NamedTuple):
    """Where nodes meet and who this one is. `names` in the order of the nodes' numbers."""

    host: str
    port: int
    number: int
    names: tuple[str, ...]
    seconds: float  # that each step may take


class Network(NamedTuple):
    """What a node measured over all nodes."""

    latency_seconds: float  # of one element
    bandwidth: float  # bytes a second into and out of each node, as nccl-tests' bus bandwidth


def gather_reports(mine: NodeReport, meeting: Meeting) -> list[NodeReport]:
    """On node 0 the reports of all nodes; on any other its own. Each node calls it once."""
    timeout = timedelta(seconds=meeting.seconds)
    size, first = len(meeting.names), meeting.number == 0
    store = dist.TCPStore(meeting.host, meeting.port, size, first, timeout, wait_for_workers=False)
    reports = _exchange(store, "local", mine, meeting)
    if first:
        store.set("go", "" if any(report.problems for report in reports) else "go")
    # node 0 may have waited as long as it could for others
    store.wait(["go"], 2 * timeout)
    if store.get("go"):
        network = _measure(store, mine, meeting)
        if network is not None:
            mine.facts.append(f"all-reduce {network.latency_seconds * 1e6:,.0f} us, {network.bandwidth / 1e9:.2f} GB/s")
        reports = _exchange(store, "network", mine, meeting)
        if first:
            _compare_clocks(store, reports)
    if first:
        compare_versions(reports)
        _wait_for_others(store, meeting)
    else:
        store.set(f"done/{meeting.number}", "done")
    return reports


def _wait_for_others(store: dist.Store, meeting: Meeting) -> None:
    """Keep the store, which ends with this process, until the others need it no more, or do not answer."""
    try:
        store.wait([f"done/{number}" for number in range(1, len(meeting.names))], timedelta(seconds=meeting.seconds))
    except RuntimeError:
        return


def _exchange(store: dist.Store, name: str, mine: NodeReport, meeting: Meeting) -> list[NodeReport]:
    """Send this node's report; on node 0 those of all nodes that sent one in time, in the nodes' order."""
    store.set(f"{name}/{meeting.number}", json.dumps(asdict(mine)))
    if meeting.number:
        return [mine]
    deadline = time.monotonic() + meeting.seconds
    reports = []
    for number, node in enumerate(meeting.names):
        left = max(0.1, deadline - time.monotonic())
        try:
            store.wait([f"{name}/{number}"], timedelta(seconds=left))
            reports.append(NodeReport(**json.loads(store.get(f"{name}/{number}"))))
        except (RuntimeError, ValueError):
            reports.append(NodeReport(node, [f"no answer within {meeting.seconds:.0f} s"], []))
    return reports


def _measure(store: dist.Store, mine: NodeReport, meeting: Meeting) -> Network | None:
    """All-reduce over all nodes, on this one's first GPU or its CPU; None, and a problem, where that fails."""
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    size = len(meeting.names)
    try:
        timeout = timedelta(seconds=meeting.seconds)
        group_store = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group_store, rank=meeting.number, world_size=size, timeout=timeout)
        small, large = torch.ones(1, device=device), torch.empty(_LARGE_ELEMENTS[backend], device=device)
        dist.all_reduce(small)
        clock = time.time()
        store.set(f"clock/{meeting.number}", repr(clock))
        latency = min(_timed(small, device) for _ in range(_REPEATS))
        seconds, correct = [], True
        for _ in range(_REPEATS):
            large.fill_(meeting.number + 1)
            seconds.append(_timed(large, device))
            correct &= bool((large == size * (size + 1) / 2).all())
        dist.destroy_process_group()
    except RuntimeError as error:
        mine.problems.append(f"{backend} all-reduce over {size} nodes: {str(error).splitlines()[0]}")
        return None
    if not correct:
        mine.problems.append(f"{backend} all-reduce over {size} nodes gives wrong sums")
    share = 2 * (size - 1) / size  # of the tensor that crosses each node's link, in a ring
    return Network(latency, share * large.nbytes / min(seconds))


def _timed(tensor: torch.Tensor, device: torch.device) -> float:
    """Seconds of one all-reduce."""
    start = time.monotonic()
    dist.all_reduce(tensor)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - start


def _compare_clocks(store: dist.Store, reports: list[NodeReport]) -> None:
    present = [number for number in range(len(reports)) if store.check([f"clock/{number}"])]
    compare_clocks([(reports[number], float(store.get(f"clock/{number}"))) for number in present])


def compare_clocks(clocks: list[tuple[NodeReport, float]]) -> None:
    """Add to each report how far its clock is from the median one; more than a second is a problem."""
    if not clocks:
        return
    middle = sorted(clock for _, clock in clocks)[len(clocks) // 2]
    for report, clock in clocks:
        skew = clock - middle
        report.facts.append(f"clock {skew:+.3f} s")
        if abs(skew) > _MOST_SKEW_SECONDS:
            report.problems.append(f"its clock is {skew:+.1f} s from the other nodes'; set it (chrony, ntpd)")


def compare_versions(reports: list[NodeReport]) -> None:
    """Add a problem to each report whose megagpt or configuration differs from most nodes'."""
    answered = [report for report in reports if report.version]
    for name, what in (
        ("version", "runs {here}, most nodes {most}"),
        ("config", "configuration {here}, elsewhere {most}"),
    ):
        found = Counter(getattr(report, name) for report in answered)
        if len(found) < 2:
            continue
        (most, _), *_ = found.most_common()
        for report in answered:
            if getattr(report, name) != most:
                report.problems.append(what.format(here=getattr(report, name), most=most))
