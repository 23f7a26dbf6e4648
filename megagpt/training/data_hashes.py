"""data.verify_hashes: is every dataset what was built? In: the configuration. Out: a line for a person, or DataError.

The ranks share the shards; one rank alone does it before it starts a process group. What it costs is reading all data.
"""

import os
import time

import torch
import torch.distributed as dist

from megagpt.config import DataSection
from megagpt.data.corpora import corpus_entries
from megagpt.data.tool import usable_cpus
from megagpt.data.verify import Verification, verify_share
from megagpt.parallel.agree import on_every_rank
from megagpt.parallel.mesh import Mesh
from megagpt.training.progress import Phase, Progress

_MOST_WORKERS = 8  # threads of a rank


def verify_alone(data: DataSection, progress: Progress) -> str:
    """All datasets by this rank, before any process group. Raises DataError naming what is damaged."""
    started = time.perf_counter()
    return _describe(_verify_shares(data, 0, 1, _workers(), progress), started)


def verify_together(data: DataSection, mesh: Mesh, progress: Progress) -> str:
    """All datasets by all ranks. Every rank calls it; gathers over all ranks.

    Raises on every rank the first rank's DataError.
    """
    started = time.perf_counter()
    workers = torch.tensor([_workers()], device=mesh.device)
    dist.all_reduce(workers, op=dist.ReduceOp.MIN)  # the shares are cut by it
    mine = on_every_rank(
        lambda: _verify_shares(data, mesh.rank, mesh.world_size, int(workers), progress),
        mesh,
    )
    counts = torch.tensor([[share.num_shards, share.num_bytes] for share in mine], device=mesh.device)
    dist.all_reduce(counts)
    whole = [
        share._replace(num_shards=num_shards, num_bytes=num_bytes)
        for share, (num_shards, num_bytes) in zip(mine, counts.tolist(), strict=True)
    ]
    return _describe(whole, started)


def _verify_shares(
    data: DataSection, rank: int, num_ranks: int, workers: int, progress: Progress
) -> list[Verification]:
    shares = []
    for entry in corpus_entries(data):
        share = verify_share(entry.path, rank, num_ranks, workers, lambda: progress.mark(Phase.VERIFY))
        share.raise_problems()
        shares.append(share)
    return shares


def _describe(datasets: list[Verification], started: float) -> str:
    num_shards = sum(dataset.num_shards for dataset in datasets)
    megabytes, seconds = sum(dataset.num_bytes for dataset in datasets) / 1e6, time.perf_counter() - started
    return (
        f"data verified: {', '.join(dataset.prefix for dataset in datasets)}: hashes, ids and document ends are right "
        f"({num_shards:,} shard{'' if num_shards == 1 else 's'}, {megabytes:,.1f} MB, {seconds:.2f} s)"
    )


def _workers() -> int:
    """This rank's part of the machine's cores."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_WORKERS, usable_cpus() // ranks_here))
