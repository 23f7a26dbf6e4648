"""What one profiled rank measured, and what that comes to over several. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from megagpt.training.profile_groups import Group
from megagpt.training.profile_memory import MemoryUse
from megagpt.training.profile_trace import StepTimes


@dataclass(frozen=True)
class RankProfile:
    """What one rank measured."""

    rank: int
    place: str  # such as "pipeline 1, tensor 0, data 2"
    device: str
    threads: int  # of the CPU, for one operator
    times: StepTimes
    memory: MemoryUse
    plain_seconds: float | None  # of steps of this session that were not profiled; None where there were none
    cpu_seconds: float  # of a step in which the main thread had a core

    def share(self, *groups: Group) -> float:
        """Of a step's time."""
        return sum(map(self.times.group, groups)) / self.times.seconds


def mean_share(profiles: Sequence[RankProfile], *groups: Group) -> float:
    """Of a step, on average over the profiled ranks."""
    return sum(profile.share(*groups) for profile in profiles) / len(profiles)


def worst_lost_core(profiles: Sequence[RankProfile]) -> tuple[int, float]:
    """The rank without a GPU that was kept from its core longest, and for which share of the step."""
    lost = {
        profile.rank: 1 - profile.share(Group.COMMUNICATION) - profile.cpu_seconds / profile.times.seconds
        for profile in profiles
        if not profile.times.on_device
    }
    worst = max(lost, key=lambda rank: lost[rank], default=0)
    return worst, max(0.0, lost.get(worst, 0.0))
