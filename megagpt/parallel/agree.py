"""One rank's own trouble, such as a shard it cannot read, ends all ranks with its error: none waits for another."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from megagpt.errors import MegagptError, TrainingError
from megagpt.parallel.mesh import Mesh

Result = TypeVar("Result")


def on_every_rank(action: Callable[[], Result], mesh: Mesh) -> Result:
    """What `action` returns on this rank, once it has succeeded on all. Every rank calls it; gathers over all ranks.

    Raises on every rank the first rank's MegagptError, with its rank before the message where that is not 0; an
    OSError becomes a TrainingError.
    """
    result, failure = None, None
    try:
        result = action()
    except MegagptError as error:
        failure = error
    except OSError as error:
        failure = TrainingError(f"{error.strerror}: {error.filename}; free space or give this user rights there")
    failures: list[MegagptError | None] = [None] * mesh.world_size
    dist.all_gather_object(failures, failure)
    for rank, found in enumerate(failures):
        if found is not None:
            raise type(found)(f"rank {rank}: {found}" if rank else str(found))
    return result  # type: ignore[return-value]  # it succeeded here too
