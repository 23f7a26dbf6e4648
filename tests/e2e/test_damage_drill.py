"""A flipped byte in each file of a checkpoint, and a disk that is full for a while: runs end as the unbroken one."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megagpt.checkpoint.read import find_checkpoint, read_model
from tests.e2e.rank_tree import RankTree
from tests.parallel.runs import make_data, read_metrics, run_arguments, same_weights

_DISK_BYTES = 40 << 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    (folder / "drill.toml").write_text("", encoding="utf-8")
    return folder


def train(data: Path, run: Path, *extra: str, num_ranks: int = 2) -> RankTree:
    run.mkdir(exist_ok=True)
    return RankTree(run, num_ranks, [str(data / "drill.toml"), *run_arguments(data), f"--run.folder={run}/run", *extra])


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    tree = train(data, folder)
    assert tree.wait(120) == [0, 0], tree.said()
    return folder


@pytest.fixture(scope="module")
def half_way(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after four steps, with checkpoints after two and four."""
    folder = tmp_path_factory.mktemp("half")
    tree = train(data, folder, "--train.steps=4", "--evaluation.interval_steps=3")
    assert tree.wait(120) == [0, 0], tree.said()
    return folder


def flip_byte(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def test_a_flipped_byte_in_any_file_is_found_and_the_checkpoint_before_it_used(
    data: Path, unbroken: Path, half_way: Path, tmp_path: Path
) -> None:
    """Training goes on from step 2, says which file is damaged, and ends with the weights of the unbroken run."""
    files = sorted(path.name for path in find_checkpoint(half_way / "run").iterdir())
    assert len(files) >= 8, files
    chance = random.Random(files[0])
    for number, name in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(half_way, folder)
        flip_byte(folder / "run" / "checkpoints" / "step-00000004" / name, chance)
        tree = train(data, folder)
        assert tree.wait(120) == [0, 0], (name, tree.said())
        said = (folder / "rank-0.txt").read_text()
        damage = [line for line in said.splitlines() if "step-00000004" in line and "damaged" in line]
        assert damage, (name, said)
        assert any(name in line for line in damage), (name, damage)
        assert "continuing from" in said, said
        assert "step-00000002 (step 2 of 6)" in said, said
        assert read_metrics(folder)[-1] == read_metrics(unbroken)[-1], name
        assert same_weights(folder, unbroken), name


def test_a_flipped_byte_in_latest(data: Path, unbroken: Path, half_way: Path, tmp_path: Path) -> None:
    """`latest` is only a name: the newest good checkpoint is found without it."""
    folder = tmp_path / "run"
    shutil.copytree(half_way, folder)
    flip_byte(folder / "run" / "checkpoints" / "latest", random.Random(3))
    tree = train(data, folder)
    assert tree.wait(120) == [0, 0], tree.said()
    assert "step-00000004 (step 4 of 6)" in (folder / "rank-0.txt").read_text()
    assert same_weights(folder, unbroken)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={_DISK_BYTES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk of its own (mount -t tmpfs) needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves not a byte free."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def until_said(tree: RankTree, folder: Path, words: str) -> None:
    until, said = time.monotonic() + 60, folder / "rank-0.txt"
    while not said.exists() or words not in said.read_text():
        assert tree.alive, tree.said()
        assert time.monotonic() < until, tree.said()
        time.sleep(0.002)


def test_a_full_disk_is_said_and_training_goes_on(data: Path, small_disk: Path, tmp_path: Path) -> None:
    """Saves fail while the disk is full, loudly; the first one with room succeeds."""
    steps = (
        "--train.steps=400",
        "--checkpoint.interval_steps=10",
        "--checkpoint.keep=1",
        "--evaluation.interval_steps=0",
    )
    tree = train(data, tmp_path / "out", *steps, f"--run.folder={small_disk}/run")
    until_said(tree, tmp_path / "out", "saved ")
    ballast = fill(small_disk)
    until_said(tree, tmp_path / "out", "failed")
    good = find_checkpoint(small_disk / "run")
    read_model(good)
    ballast.unlink()
    assert tree.wait(120) == [0, 0], tree.said()
    said = (tmp_path / "out" / "rank-0.txt").read_text()
    assert "training goes on" in said, said
    assert find_checkpoint(small_disk / "run").name == "step-00000400"
    read_model(small_disk / "run")
    assert os.listdir(small_disk / "run" / "checkpoints").count("step-00000400") == 1


def test_a_last_save_without_room_is_an_error(data: Path, small_disk: Path, tmp_path: Path) -> None:
    steps = ("--train.steps=60", "--checkpoint.interval_steps=0", "--evaluation.interval_steps=0")
    tree = train(data, tmp_path / "out", *steps, f"--run.folder={small_disk}/run")
    until_said(tree, tmp_path / "out", "step  2/60")
    fill(small_disk)
    assert tree.wait(120) == [3, 3], tree.said()
    said = (tmp_path / "out" / "rank-0.txt").read_text()
    assert "free space" in said, said
