"""data.verify_hashes: a dataset that is not what was built is found before training, and every rank is told."""

import io
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from megagpt.data.builder import build_dataset
from megagpt.data.sources_types import Sizes
from megagpt.errors import DataError
from megagpt.tokenizer import load_tokenizer
from tests.parallel.harness import run_ranks
from tests.parallel.runs import flip_bit, make_data, prepare_small, run_arguments, run_prepared


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of several shards."""
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    small = Sizes(chunk_bytes=4000)
    source = [str(folder / "corpus.jsonl")]
    build_dataset(source, folder / "corpus", tokenizer, overwrite=True, sizes=small, shard_bytes=4000)
    return folder


def train_and_say(arguments: list[str]) -> tuple[str, str]:
    """Train one rank; what it said, and its DataError."""
    said = io.StringIO()
    try:
        run_prepared(prepare_small(arguments), Console(file=said, quiet=os.environ["RANK"] != "0", width=1000))
    except DataError as error:
        return said.getvalue(), str(error)
    return said.getvalue(), ""


def verified(data: Path, folder: Path) -> list[str]:
    shutil.copytree(data, folder)
    return run_arguments(folder, "--data.verify_hashes=true", "--train.steps=1", "--evaluation.interval_steps=0")


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_whole_dataset_is_said_to_be_right(data: Path, tmp_path: Path, num_ranks: int) -> None:
    (said, error), *others = run_ranks(num_ranks, train_and_say, verified(data, tmp_path / "run"))
    assert error == ""
    assert "data verified: " in said
    assert "corpus: hashes, ids and document ends are right (4 shards, " in said
    assert all(other == ("", "") for other in others)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("place", [2, -6], ids=["first shard", "last shard"])
def test_a_flipped_byte_of_bin_is_found(data: Path, tmp_path: Path, num_ranks: int, place: int) -> None:
    """Whichever rank finds it, all end with its error, and none waits for another. Nothing is trained."""
    arguments = verified(data, tmp_path / "run")
    flip_bit(tmp_path / "run" / "corpus.bin", place)
    results = run_ranks(num_ranks, train_and_say, arguments)
    shard = 0 if place > 0 else 3
    finder = "rank 1: " if num_ranks == 2 and shard == 3 else ""
    for _, error in results:
        assert error.startswith(f"{finder}dataset {tmp_path}/run/corpus is damaged; copy it again or rebuild it:\n")
        assert f"shard {shard} of 4 does not have its hash: bytes " in error
        assert f"{tmp_path}/run/corpus.bin" in error
        assert " was written, " in error
        assert error.count(" does not have its hash") == 1
    assert not (tmp_path / "run" / "run" / "checkpoints").exists()


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_flipped_byte_of_idx_is_found(data: Path, tmp_path: Path, num_ranks: int) -> None:
    """Documents that end elsewhere than they did; lengths and offsets are always looked at."""
    arguments = verified(data, tmp_path / "run")
    flip_bit(tmp_path / "run" / "corpus.idx", -16)  # where document 118 begins: its bound
    results = run_ranks(num_ranks, train_and_say, arguments)
    finder = "rank 1: " if num_ranks == 2 else ""
    for _, error in results:
        assert error.startswith(f"{finder}dataset {tmp_path}/run/corpus is damaged; copy it again or rebuild it:\n")
        assert "does not end with the end-of-document id" in error


def test_without_hashes_it_is_refused(data: Path, tmp_path: Path) -> None:
    arguments = verified(data, tmp_path / "run")
    (tmp_path / "run" / "corpus.json").unlink()
    ((_, error),) = run_ranks(1, train_and_say, arguments)
    assert "corpus has no recorded hashes to verify: it has no .json beside it; build it again with `megagpt" in error
    assert "or set data.verify_hashes = false" in error


def test_they_are_looked_at_only_where_wanted(data: Path, tmp_path: Path) -> None:
    arguments = verified(data, tmp_path / "run")
    flip_bit(tmp_path / "run" / "corpus.bin", 2)
    ((said, error),) = run_ranks(1, train_and_say, [*arguments, "--data.verify_hashes=false"])
    assert (error, "verified" in said) == ("", False)
