"""Runs a function on several ranks: processes of a fork server that has torch, megatron-core and DeepSpeed loaded.

A rank starts in milliseconds instead of the ten seconds that importing takes. Ranks meet through a file, use one
thread each, and the first failing rank's traceback is raised in the test.
"""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

PRELOADED = ["torch", "torch._dynamo", "deepspeed", "megatron.core", "tests.parallel.preload"]


def run_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 120) -> list[Any]:
    """Call `function(*arguments)` on every rank with torch.distributed started; returns what each rank returned.

    `function` and its arguments are pickled: it must be defined at the top of a module. Raises RuntimeError with the
    traceback of the first rank that failed, or naming the ranks that did not end in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        receivers, processes = [], []
        for rank in range(num_ranks):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank_main,
                args=(rank, num_ranks, f"file://{folder}/rendezvous", sender, function, arguments),
                daemon=True,
            )
            process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
        try:
            return _collect(receivers, timeout_seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(receivers: list[Connection], timeout_seconds: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        waiting = {id(r): rank for rank, r in enumerate(receivers) if rank not in results}
        ready = wait([receivers[rank] for rank in waiting.values()], timeout=timeout_seconds)
        if not ready:
            raise RuntimeError(f"ranks {sorted(waiting.values())} did not end within {timeout_seconds} s")
        for receiver in ready:
            rank = waiting[id(receiver)]
            try:
                ok, value = receiver.recv()  # type: ignore[union-attr]
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a word") from None
            if not ok:
                raise RuntimeError(f"rank {rank} failed:\n{value}")
            results[rank] = pickle.loads(value)
    return [results[rank] for rank in range(len(receivers))]


def _rank_main(
    rank: int,
    num_ranks: int,
    rendezvous: str,
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), OMP_NUM_THREADS="1")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_ranks)
        result = function(*arguments)
        sender.send(
            (True, pickle.dumps(result))
        )  # by value: multiprocessing would hand over shared memory of a dead rank
        dist.barrier()
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()
        os._exit(0)
