"""Runs the stages of a recipe: on this machine, or as SLURM jobs that wait for one another. In: stages.

A stage's folder in WORK/logs has datatrove's completion marker for each task that is done: running again goes on.
"""

import contextlib
import copy
import io
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path

from megagpt.data.datatrove_base import logger
from megagpt.data.recipe_chinese import Stage
from megagpt.errors import DataError

from datatrove.executor.local import LocalPipelineExecutor  # isort: skip (our modules say it where it is missing)
from datatrove.executor.slurm import SlurmPipelineExecutor  # isort: skip


@dataclass(frozen=True)
class SlurmOptions:
    """How the stages are submitted; `options` are further options of sbatch, such as account."""

    partition: str
    time: str = "24:00:00"
    memory_gb: int = 4  # of a task
    options: Mapping[str, str] = field(default_factory=dict)


def run_here(work: Path, stages: Sequence[Stage], workers: int, on_stage: Callable[[str], None]) -> None:
    """Run what is not done of all stages, on `workers` processes; `on_stage` gets a line for each stage.

    Raises the error of the first task that fails, when the tasks beside it have ended.
    """
    for stage in stages:
        started = time.perf_counter()
        executor = _LocalExecutor(
            pipeline=stage.pipeline,
            tasks=stage.tasks,
            workers=min(workers, stage.tasks),
            logging_dir=str(work / "logs" / stage.name),
        )
        missing = len(executor.get_incomplete_ranks())
        executor.run()
        took = f"{time.perf_counter() - started:.1f} s" if missing else "done before"
        on_stage(f"{stage.title:36} {stage.tasks:5} tasks  {took}")


def submit(work: Path, stages: Sequence[Stage], slurm: SlurmOptions, activate: Path) -> list[str]:
    """Submit what is not done of all stages to SLURM, each waiting for the one before; a line for each job.

    `activate`: the script that activates the environment on a node.
    """
    before: SlurmPipelineExecutor | None = None
    lines = []
    for stage in stages:
        before = SlurmPipelineExecutor(
            pipeline=stage.pipeline,
            tasks=stage.tasks,
            time=slurm.time,
            partition=slurm.partition,
            mem_per_cpu_gb=slurm.memory_gb,
            job_name=f"clean-{stage.name}",
            qos=slurm.options.get("qos", ""),
            venv_path=str(activate),
            sbatch_args={"kill-on-invalid-dep": "yes", **slurm.options},
            depends=before,
            logging_dir=str(work / "logs" / stage.name),
        )
        before.run()
        state = "done before" if before.job_id == -1 else f"job {before.job_id}"
        lines.append(f"{stage.title:36} {stage.tasks:5} tasks  {state}")
    return lines


def silence() -> None:
    """Keep datatrove from printing, for the rest of this process; its logs in files stay."""
    logger.remove()


class _LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor on a pool that notices when a process dies: multiprocessing's waits for it forever.

    What it has to say is in the log of each task; nothing is printed.
    """

    def run(self) -> None:
        """Run the tasks that are not done."""
        ranks = self.get_incomplete_ranks()
        if not ranks:
            return
        self.save_executor_as_json()
        if self.workers == 1:
            for rank in ranks:
                copy.deepcopy(self).run_task(rank)  # a copy: steps count in themselves
            return
        context = get_context("forkserver")
        with ProcessPoolExecutor(self.workers, context, initializer=_end_with_parent) as pool:
            try:
                for task in as_completed([pool.submit(self.run_task, rank) for rank in ranks]):
                    task.result()
            except BrokenProcessPool as error:
                raise DataError(
                    f"a process was killed, perhaps because memory ran out; {len(self.get_incomplete_ranks())} of "
                    f"{self.tasks} tasks are not done: run the same command again, with fewer --workers"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def run_task(self, rank: int) -> None:
        """Run one task in this process."""
        with contextlib.redirect_stderr(_Nowhere()):
            self._run_for_rank(rank)


def _end_with_parent() -> None:
    """End this process when the one that runs the recipe does, however that ends.

    Else a process whose run was killed would go on writing while the next run writes the same files.
    """

    def wait() -> None:
        parent = parent_process()
        assert parent is not None, "runs in a process of the pool"
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _Nowhere(io.TextIOBase):
    """Takes text and forgets it; unlike a file it is never closed under a logger that still has it."""

    def write(self, text: str) -> int:
        return len(text)
