"""Errors by which a rank learns that another one is gone: from a library's exception to one line and a traceback file.

In: an exception. Out: whether it means a lost peer, LostPeer.
"""

import traceback
from pathlib import Path

import torch.distributed as dist

from megagpt.checkpoint.retention import latest_step
from megagpt.errors import LostPeer
from megagpt.training.run_files import utc_now
from megagpt.training.watchdog import LOGS_FOLDER

# gloo, NCCL and the store that ranks meet at say it in these words; none of them has an exception of its own for it
_WORDS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",  # gloo: longer than the process group's timeout
    "caused pair closure",
    "remote process exited",
    "ncclRemoteError",
    "NCCL communicator was aborted",
    "failed to recv, got 0 bytes",
)


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an exception of a collective says that another rank does not answer any more."""
    if isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return True
    return any(word in str(error) for word in _WORDS)


def lost_peer(rank: int, place: str, folder: Path) -> LostPeer:
    """What to say in a run's folder of a peer lost in `place`, such as `step 12 (forward and backward)`."""
    saved = latest_step(folder / "checkpoints")
    where = f"goes on from step {saved}" if saved is not None else "begins anew"
    return LostPeer(
        f"rank {rank}: lost the connection to another rank in {place}; training {where} when the run is started again"
    )


def keep_traceback(error: BaseException, rank: int, folder: Path) -> None:
    """Add an exception's traceback to RUN/logs/errors-rankNNNNN.txt; print it where the disk refuses."""
    logs = folder / LOGS_FOLDER
    try:
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"errors-rank{rank:05}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{utc_now()}\n{''.join(traceback.format_exception(error))}\n")
    except OSError:
        traceback.print_exception(error)
