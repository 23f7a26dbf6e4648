"""Index files: built once by whoever comes first, mapped by all, never taken for another's, whole or not there."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from megagpt.data import index_files
from megagpt.data.index_files import IndexStore
from megagpt.data.samples import SampleIndex
from megagpt.errors import DataError
from tests.unit.data.datasets import numbered_dataset

NUMBERS = np.arange(0, 3000, 3, dtype=np.int64)


def load(store: IndexStore, order: str = "1/0", numbers: np.ndarray = NUMBERS) -> np.ndarray:
    return store.load("train-0", order, len(numbers), lambda: numbers)


def store_at(
    place: Path, content_hash: str = "a", said: list[str] | None = None, folder: str | None = None
) -> IndexStore:
    say = (said if said is not None else []).append
    return IndexStore(place / "d", content_hash, folder, keep_small=True, say=say)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_index_is_built_once_and_mapped(tmp_path: Path) -> None:
    first, second = store_at(tmp_path), store_at(tmp_path)
    for store in (first, second, second):
        assert load(store).tolist() == NUMBERS.tolist()
    assert [use.built for use in (*first.uses, *second.uses)] == [True, False, False]
    found = load(second)
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    (name,) = files_in(tmp_path)
    assert name.startswith("d.index-train-0-")
    assert first.uses[0].path == tmp_path / name
    assert first.uses[0].num_bytes == NUMBERS.nbytes == (tmp_path / name).stat().st_size - 256


def test_a_small_index_without_a_file_stays_in_memory(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "d", "a")
    assert load(store).tolist() == NUMBERS.tolist()
    assert store.uses[0].path is None
    assert files_in(tmp_path) == []
    large = np.zeros(1 << 13, dtype=np.int64)
    assert load(store, numbers=large).tolist() == large.tolist()
    assert store.uses[1].path is not None
    load(store_at(tmp_path))
    assert load(store).tolist() == NUMBERS.tolist()
    assert store.uses[2].path is not None, "a file that is there is used"


def test_another_order_or_dataset_has_a_file_of_its_own(tmp_path: Path) -> None:
    load(store_at(tmp_path))
    load(store_at(tmp_path), order="2/0", numbers=NUMBERS + 1)
    assert len(files_in(tmp_path)) == 2
    load(store_at(tmp_path, content_hash="b"), numbers=NUMBERS + 2)
    assert len(files_in(tmp_path)) == 1, "those of the dataset that was there before are gone"
    assert load(store_at(tmp_path, content_hash="b"), numbers=NUMBERS + 9).tolist() == (NUMBERS + 2).tolist()


@pytest.mark.parametrize("change", ["flip", "cut", "grow", "header", "empty", "alien"])
def test_a_damaged_file_is_built_again(tmp_path: Path, change: str) -> None:
    load(store_at(tmp_path))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    changed = {
        "flip": content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
        "cut": content[:-1],
        "grow": content + bytes(8),
        "header": b"{" + content[2:],
        "empty": b"",
        "alien": b'{"format": "other"}'.ljust(256) + content[256:],
    }
    path.write_bytes(changed[change])
    said: list[str] = []
    store = store_at(tmp_path, said=said)
    assert load(store).tolist() == NUMBERS.tolist()
    assert store.uses[0].built
    assert path.read_bytes() == content
    assert f"index {path} is damaged, and is built again" in said


def test_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    store = store_at(tmp_path / "data", folder=str(tmp_path / "indexes" / "new"))
    load(store)
    assert store.uses[0].path is not None
    assert store.uses[0].path.parent == tmp_path / "indexes" / "new"


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that cannot be written, whoever runs the test; the user's cache is in `cache`."""
    folder = tmp_path / "data"
    folder.mkdir()
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *rest: object, **named: object) -> object:
        if path.parent == folder and mode != "rb":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *rest, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_a_read_only_dataset_is_indexed_in_the_users_cache(tmp_path: Path, read_only: Path) -> None:
    load(store_at(read_only))
    store = store_at(read_only)
    assert load(store).tolist() == NUMBERS.tolist()
    (use,) = store.uses
    assert not use.built
    assert use.path is not None
    assert use.path.parent == tmp_path / "cache" / "megagpt" / "index"
    assert files_in(read_only) == []


def test_an_index_beside_a_read_only_dataset_is_found(tmp_path: Path, read_only: Path) -> None:
    load(store_at(tmp_path))
    for path in tmp_path.glob("d.index-*"):
        path.rename(read_only / path.name)
    store = store_at(read_only)
    load(store)
    assert store.uses[0].path is not None
    assert store.uses[0].path.parent == read_only


def test_where_nothing_can_be_written_every_process_keeps_its_own(
    tmp_path: Path, read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file, so that no folder can be made in it")
    said: list[str] = []
    with pytest.raises(DataError, match=r"index .* cannot be written: Not a directory; free space there, or name ano"):
        load(store_at(read_only, said=said))
    monkeypatch.setattr(index_files, "_cache_folders", list)
    store = store_at(read_only, said=said)
    assert load(store).tolist() == NUMBERS.tolist()
    assert store.uses[0].path is None
    assert said == [
        f"no folder can be written for the index of {read_only / 'd'}: every process keeps its own, 0 MiB; "
        "name a folder in data.index_folder"
    ]
    with pytest.raises(DataError, match=r"data.index_folder = .*data cannot be written .*`megagpt data index`"):
        load(store_at(tmp_path, folder=str(read_only)))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(DataError, match=r"index .*d\.index-train-0-.* cannot be written: No space left on device"):
            load(store_at(tmp_path))
    assert files_in(tmp_path) == [], "nothing half-written is left"
    assert load(store_at(tmp_path)).tolist() == NUMBERS.tolist()


def slow_numbers(folder: Path) -> np.ndarray:
    """Says on disk that a process builds, and takes a while."""
    (folder / f"built-by-{os.getpid()}").touch()
    time.sleep(0.3)
    return NUMBERS


def load_slowly(folder: Path, done: "multiprocessing.Queue[int]") -> None:
    store = IndexStore(folder / "d", "a", keep_small=True)
    found = store.load("train-0", "1/0", len(NUMBERS), lambda: slow_numbers(folder))
    done.put(int(found[-1]))


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    done: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=load_slowly, args=(tmp_path, done)) for _ in range(5)]
    for process in processes:
        process.start()
    assert [done.get(timeout=60) for _ in processes] == [int(NUMBERS[-1])] * 5
    for process in processes:
        process.join()
    names = files_in(tmp_path)
    assert len([name for name in names if name.startswith("built-by-")]) == 1
    assert len(names) == 2, "no lock and no half-written file is left"


def test_a_builder_that_is_killed_leaves_the_work_to_the_next(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    done: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=load_slowly, args=(tmp_path, done))
    process.start()
    while not list(tmp_path.glob("built-by-*")):
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (lock,) = tmp_path.glob("*.lock")
    (tmp_path / f"{lock.name.removesuffix('.lock')}.abc.building").write_bytes(b"half")
    store = store_at(tmp_path)
    assert load(store).tolist() == NUMBERS.tolist()
    assert store.uses[0].built
    assert len(list(tmp_path.glob("d.index-*"))) == 1


def test_samples_are_the_same_with_and_without_files(tmp_path: Path) -> None:
    dataset = numbered_dataset(tmp_path / "d", [7, 3, 12, 30, 1, 1, 4] * 20)
    shares = (0.8, 0.2, 0.0)
    for split in ("train", "valid"):
        plain = SampleIndex(dataset, split, shares, 5, 3)  # type: ignore[arg-type]
        for _ in range(2):
            store = IndexStore(dataset.prefix, dataset.content_hash(), keep_small=True)
            mapped = SampleIndex(dataset, split, shares, 5, 3, store)  # type: ignore[arg-type]
            for number in range(plain.samples_per_epoch):
                assert mapped.tokens_of(number).tolist() == plain.tokens_of(number).tolist()
    names = [path.name.rpartition("-")[0] for path in tmp_path.glob("d.index-*")]
    assert sorted(names) == ["d.index-train-0", "d.index-valid-0"]
