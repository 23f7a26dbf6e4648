"""One rank of checkpoint.py: writes and reads its share of a checkpoint in each way, round after round.

    RANK=0 WORLD_SIZE=1 … python benchmarks/checkpoint_ranks.py FOLDER MODEL ROUNDS

In: a folder on the disk to measure, and what a launcher sets. Out: on rank 0, a line of JSON.
"""

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import xxhash
from safetensors.torch import save_file

from megagpt.checkpoint.host_copy import HostCopy
from megagpt.checkpoint.load import load_share
from megagpt.checkpoint.manifest import FORMAT_VERSION, CheckpointLayout, Manifest, OptimizerProgress
from megagpt.checkpoint.pieces import KINDS, Piece
from megagpt.checkpoint.read import read_manifest
from megagpt.checkpoint.save import CheckpointContents, save_checkpoint
from megagpt.checkpoint.state import StateReader
from megagpt.config_file import load_config
from megagpt.model.names import parameter_shapes
from megagpt.parallel.mesh import build_mesh, destroy_mesh
from megagpt.plan import make_plan

PART_BYTES = 8 << 20
QUARTERS = 4


def main() -> None:
    """Measure; rank 0 prints the rounds."""
    folder, model, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    share = Share(folder, model)
    found: dict[str, dict[str, list[float]]] = {"write": {}, "read": {}, "memory": {}}
    for number in range(rounds):
        for name, write in share.writers().items():
            share.clear(name)
            found["write"].setdefault(name, []).append(timed(write))
        for name, read in share.readers().items():
            share.forget()
            found["read"].setdefault(name, []).append(timed(read))
        for name, work in share.memory_work().items():
            found["memory"].setdefault(name if number else f"{name}, first", []).append(timed(work))
    read_bytes = {name: share.bytes_read(read) for name, read in share.readers().items()}
    if dist.get_rank() == 0:
        print(
            json.dumps({"bytes": share.total_bytes, "rank_bytes": share.raw.nbytes, "read_bytes": read_bytes, **found})
        )
    destroy_mesh()


def timed(action: Callable[[], object]) -> float:
    """Seconds until every rank is done."""
    dist.barrier()
    started = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - started


class Share:
    """This rank's share of a checkpoint of random values, and the ways to write and read it."""

    def __init__(self, folder: Path, model: str) -> None:
        self._folder, self._mesh = folder, build_mesh(1, 1)
        rank, world_size = self._mesh.rank, self._mesh.world_size
        config = load_config(model, [f"--run.folder={folder}"])
        self._spec = make_plan(config, 1, 50_257).spec
        sizes = {name: torch.Size(info.shape).numel() for name, info in parameter_shapes(self._spec).items()}
        ranges = {name: (size * rank // world_size, size * (rank + 1) // world_size) for name, size in sizes.items()}
        self._memory = mmap.mmap(-1, len(KINDS) * 4 * sum(stop - start for start, stop in ranges.values()))
        values = torch.frombuffer(self._memory, dtype=torch.float32).normal_()
        self.raw = memoryview(self._memory)
        self.total_bytes = len(KINDS) * 4 * sum(sizes.values())
        self._pieces, used = [], 0
        for name, (start, stop) in ranges.items():
            count = stop - start
            tensors = (values[used + n * count : used + (n + 1) * count] for n in range(len(KINDS)))
            self._pieces.append(Piece(name, 0, start, stop, *tensors))
            used += len(KINDS) * count
        self._target = [Piece(*piece[:4], *(torch.zeros(len(piece.master)) for _ in KINDS)) for piece in self._pieces]
        self._host = HostCopy(torch.device("cpu"))

    def writers(self) -> dict[str, Callable[[], object]]:
        """By name; each leaves its files on the disk."""
        return {
            "plain": lambda: self._write_plain("plain", 0),
            "plain direct": lambda: self._write_plain("plain direct", os.O_DIRECT),
            "ours": self._write_ours,
            "safetensors, then sha256": self._write_safetensors,
            "torch DCP, no hashes": self._write_dcp,
        }

    def readers(self) -> dict[str, Callable[[], object]]:
        """By name; each reads from the disk."""
        return {
            "plain": self._read_plain,
            "ours": self._read_ours,
            "ours, no hashes": lambda: self._fill(self._target),
            "ours, no hashes, a quarter": lambda: self._fill(
                [piece.narrow(piece.start, piece.start + len(piece.master) // QUARTERS) for piece in self._target]
            ),
            "torch DCP, no hashes": self._read_dcp,
        }

    def memory_work(self) -> dict[str, Callable[[], object]]:
        """What needs no disk."""
        return {
            "snapshot": lambda: self._host.take(self._pieces, None),
            "xxh3_128": lambda: xxhash.xxh3_128(self.raw),
            "sha256": lambda: hashlib.sha256(self.raw),
        }

    def clear(self, name: str) -> None:
        """Remove what the writer wrote in the round before, so that it writes new files; the disk is idle."""
        if self._mesh.rank == 0:
            shutil.rmtree(self._place(name), ignore_errors=True)
            self._place(name).mkdir(exist_ok=True)
            os.sync()
        dist.barrier()

    def forget(self) -> None:
        """Drop every file from the page cache."""
        for path in self._folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        dist.barrier()

    def bytes_read(self, read: Callable[[], object]) -> int:
        """Bytes that came from the disk for this rank."""
        self.forget()
        before = _disk_bytes()
        read()
        dist.barrier()
        return _disk_bytes() - before

    def _place(self, name: str) -> Path:
        return self._folder / name.split(",")[0].replace(" ", "-")

    def _mine(self, name: str) -> Path:
        return self._place(name) / f"rank-{self._mesh.rank}"

    def _write_plain(self, name: str, flags: int) -> None:
        file = os.open(self._mine(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags)
        left = self.raw
        while left:
            if len(left) < PART_BYTES:  # its last block is not whole
                _no_direct(file)
            left = left[os.write(file, left[:PART_BYTES]) :]
        os.fsync(file)
        os.close(file)

    def _write_ours(self) -> None:
        manifest = Manifest(
            FORMAT_VERSION,
            "0",
            1,
            1,
            None,
            self._spec,
            CheckpointLayout(1, 1, 1, self._mesh.world_size, False, 1),
            "fp32",
            1,
            None,
            None,
            None,
            {},
            optimizer=OptimizerProgress(1),
        )
        save_checkpoint(self._place("ours"), CheckpointContents(manifest, "", None, self._pieces), self._mesh, 1)

    def _write_safetensors(self) -> None:
        path = self._mine("safetensors, then sha256")
        save_file(self._tensors(self._pieces), path)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            os.fsync(file.fileno())
            while part := file.read(PART_BYTES):
                digest.update(part)

    def _write_dcp(self) -> None:
        writer = dcp.FileSystemWriter(self._place("torch DCP"), single_file_per_rank=True, sync_files=True)
        with contextlib.redirect_stdout(sys.stderr):
            dcp.save(self._tensors(self._pieces), storage_writer=writer)

    def _tensors(self, pieces: list[Piece]) -> dict[str, torch.Tensor]:
        """Under names that no other rank has."""
        return {f"{self._mesh.rank}/{piece.name}/{kind}": piece.tensor(kind) for piece in pieces for kind in KINDS}

    def _read_plain(self) -> None:
        part = memoryview(bytearray(PART_BYTES))
        with open(self._mine("plain"), "rb", buffering=0) as file:
            while file.readinto(part):
                pass

    def _read_ours(self) -> None:
        folder = self._place("ours") / "step-00000001"
        load_share(folder, read_manifest(folder), self._target, 1, self._mesh.rank, self._mesh.world_size)

    def _fill(self, pieces: list[Piece]) -> None:
        folder = self._place("ours") / "step-00000001"
        StateReader(folder, read_manifest(folder)).fill(pieces, 1)

    def _read_dcp(self) -> None:
        reader = dcp.FileSystemReader(self._place("torch DCP"))
        dcp.load(self._tensors(self._target), storage_reader=reader)


def _no_direct(file: int) -> None:
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)


def _disk_bytes() -> int:
    """Bytes that this process has had read from a disk."""
    with open("/proc/self/io", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


if __name__ == "__main__":
    main()
