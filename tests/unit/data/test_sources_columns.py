"""Chunks of parquet files and Hugging Face datasets: every row once, whatever its type, and reading that goes on."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data.corpus import CorpusFile, corpus_files
from megagpt.data.documents import read_documents
from megagpt.data.sources import Chunk, DamagedFile, Sizes, Texts, assign_ranges, chunks, line_of
from megagpt.data.sources_datasets import column_arrays, load_dataset
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.test_sources import property_test, read
from tests.unit.tokenizer.toy import toy_texts

SIZES = Sizes(chunk_bytes=20, long_line_bytes=40)
Rows = list[str | None]
rows_lists = st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=30)
TYPES: dict[str, Callable[[Rows], Any]] = {
    "string": lambda rows: pyarrow.array(rows, pyarrow.string()),
    "large_string": lambda rows: pyarrow.array(rows, pyarrow.large_string()),
    "string_view": lambda rows: pyarrow.array(rows, pyarrow.string_view()),
    "dictionary": lambda rows: pyarrow.array(rows, pyarrow.string()).dictionary_encode(),
}


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, and for the process that loads datasets a cache in a folder of its own and no network."""
    package = pytest.importorskip("datasets")
    package.disable_progress_bars()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return package


def write_parquet(path: Path, column: Any, row_group_size: int | None = None, name: str = "text") -> CorpusFile:
    table = pyarrow.table({"id": list(range(len(column))), name: column})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return corpus_files([str(path)])[0]


def texts_of(found: list[Chunk]) -> Rows:
    """The texts of chunks, None where a row is bad."""
    joined: Rows = []
    for chunk in found:
        payload = chunk.load()
        assert isinstance(payload, Texts)
        assert payload.offsets.dtype == np.int64
        assert len(payload.offsets) == chunk.stop - chunk.start + 1
        bad = dict(payload.bad)
        for row in range(chunk.stop - chunk.start):
            text = bytes(payload.data[payload.offsets[row] : payload.offsets[row + 1]]).decode()
            joined.append(None if row in bad else text)
    return joined


def check_chunks(found: list[Chunk], rows: Rows, most_bytes: int = SIZES.chunk_bytes) -> None:
    assert texts_of(found) == rows
    at = 0
    for chunk in found:
        assert (chunk.file, chunk.start) == (3, at)
        at = chunk.stop
        payload = chunk.load()
        assert isinstance(payload, Texts)
        size = int(payload.offsets[-1] - payload.offsets[0])
        assert size <= most_bytes or chunk.stop == chunk.start + 1
    assert at == len(rows)


@pytest.mark.parametrize("kind", TYPES)
@property_test
@given(rows_lists, st.integers(1, 12), st.data())
def test_parquet(tmp_path: Path, kind: str, rows: Rows, row_group_size: int, data: st.DataObject) -> None:
    if kind == "string_view" and pyarrow.__version__ < "18":
        pytest.skip("this pyarrow does not write such columns")
    file = write_parquet(tmp_path / "c.parquet", TYPES[kind](rows), row_group_size)
    found = read(file, tmp_path, sizes=SIZES)
    check_chunks(found, rows)
    assert not found or found[-1].stored_bytes == file.size_bytes
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.none() | st.integers(start, len(rows)))
    assert texts_of(read(file, tmp_path, start, stop, sizes=SIZES)) == rows[start:stop]
    if found:
        at = data.draw(st.integers(0, len(found) - 1))
        again = read(file, tmp_path, found[at].start, sizes=SIZES)
        assert [chunk[:4] for chunk in again] == [chunk[:4] for chunk in found[at:]]


def test_arrow_buffers_are_not_copied(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "c.parquet", pyarrow.array(["ab" * 5, "cd" * 5, "ef" * 5] * 20))
    first, second, *_ = (chunk.load() for chunk in read(file, tmp_path, sizes=SIZES))
    assert isinstance(first, Texts)
    assert isinstance(second, Texts)
    assert first.offsets[0] == 0
    assert second.offsets[0] == first.offsets[-1] == 20, "both look at the same buffer"
    addresses = {np.frombuffer(payload.data, np.uint8).ctypes.data for payload in (first, second)}
    assert len(addresses) == 1


def test_rows_of_a_chunk_are_limited_however_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megagpt.data.sources_columns._CHUNK_ROWS", 7)
    rows: Rows = ["", None] * 10
    file = write_parquet(tmp_path / "c.parquet", pyarrow.array(rows))
    found = read(file, tmp_path)
    assert texts_of(found) == rows
    assert [chunk.stop for chunk in found] == [7, 14, 20]


_MEMORY_BUILD = """
import re, sys
from pathlib import Path
from megagpt.data.builder import build_dataset
from megagpt.tokenizer import load_tokenizer

build_dataset([sys.argv[1]], sys.argv[2], load_tokenizer(sys.argv[3]), workers=2)
import pyarrow
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)
print(pyarrow.default_memory_pool().backend_name, int(peak) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_a_build_of_parquet_is_small(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    pytest.importorskip("megagpt.native._encoder", reason="the library's memory grows with a document")
    text = "\n".join(toy_texts(6000))
    rows = [text[1000 * number :][:30_000] for number in range(9)]  # 80 KB each, behind one-byte codes of a dictionary
    file = write_parquet(tmp_path / "c.parquet", pyarrow.array(rows * 220))
    assert file.size_bytes is not None
    assert file.size_bytes < 1_000_000
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    child = subprocess.run(
        [sys.executable, "-c", _MEMORY_BUILD, file.path, tmp_path / "d", toy_tokenizer.path],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env=environment,
    )
    pool, peak = child.stdout.split()
    assert pool == "jemalloc" or "jemalloc" not in pyarrow.supported_memory_backends()
    assert int(peak) < 200_000_000, peak


def test_rows_that_are_no_text(tmp_path: Path) -> None:
    null = "'text' is null, not text; name another with --text-key, or use --on-error skip"
    number = null.replace("null", "int")
    cases = {
        "null": (pyarrow.array(["a", None]), {1: null}),
        "nothing": (pyarrow.nulls(2), {0: null, 1: null}),
        "numbers": (pyarrow.array([1, None]), {0: number, 1: null}),
        "number codes": (pyarrow.array([1, None]).dictionary_encode(), {0: number, 1: null}),
        "binary": (pyarrow.array([b"a", b"b"]), {0: null.replace("null", "bytes"), 1: null.replace("null", "bytes")}),
        "struct": (pyarrow.array([{"a": 1}, None]), {0: null.replace("null", "dict"), 1: null}),
    }
    for name, (column, bad) in cases.items():
        file = write_parquet(tmp_path / f"{name}.parquet", column)
        (chunk,) = read(file, tmp_path, sizes=Sizes())
        payload = chunk.load()
        assert isinstance(payload, Texts), name
        assert {index: found.message for index, found in payload.bad} == bad, name
        assert {found.reason for _, found in payload.bad} == {"'text' is not text"}
        assert line_of(file, chunk.start + 1) == 2
    file = write_parquet(tmp_path / "c.parquet", pyarrow.array(["a", "b"]), name="body")
    (chunk,) = read(file, tmp_path)
    payload = chunk.load()
    assert isinstance(payload, Texts)
    ((index, found),) = payload.bad
    assert (index, found.reason) == (0, "no column 'text'")
    assert found.message.startswith("there is no column 'text'; the columns are: 'id', 'body'; name the text's column")
    assert read(file, tmp_path, start=1) == []


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    rows = [f"row {number} " + "x" * (number % 300) for number in range(20_000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path, row_group_size=5000, write_page_checksum=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xff" * 5000 + content[len(content) // 2 + 5000 :])
    (file,) = corpus_files([str(path)])
    found: list[Chunk] = []
    with pytest.raises(
        DamagedFile, match=r"the parquet data is truncated or damaged after line \d+ \(.*; copy"
    ) as error:
        found.extend(chunks(file, 0, "text", spool=tmp_path))
    whole = texts_of(found)
    assert f"after line {len(whole)} (" in str(error.value)
    assert len(whole) >= 4000
    assert whole == rows[: len(whole)]
    assert texts_of(read(file, tmp_path, 15_000, sizes=Sizes())) == rows[15_000:], "damage before it is not read"
    path.write_bytes(content[:-20])
    with pytest.raises(DataError, match="has changed while it was read"):
        read(file, tmp_path)
    (file,) = corpus_files([str(path)])
    with pytest.raises(DamagedFile, match="the parquet data is truncated or damaged after line 0"):
        read(file, tmp_path)


@settings(property_test, max_examples=25)
@given(rows_lists, st.data())
def test_a_saved_dataset(tmp_path: Path, rows: Rows, data: st.DataObject) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string")})
    folder = tmp_path / f"saved{len(list(tmp_path.iterdir()))}"
    shards = data.draw(st.integers(1, 3)) if rows else 1
    datasets.Dataset.from_dict({"text": rows}, features).save_to_disk(folder, num_shards=min(shards, max(len(rows), 1)))
    loaded = load_dataset(f"hf:{folder}")
    file = CorpusFile(f"hf:{folder}", loaded.stored_bytes, loaded)
    found = read(file, tmp_path, sizes=SIZES)
    check_chunks(found, rows)
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.none() | st.integers(start, len(rows)))
    assert texts_of(read(file, tmp_path, start, stop, sizes=SIZES)) == rows[start:stop]
    if found:
        at = data.draw(st.integers(0, len(found) - 1))
        again = read(file, tmp_path, found[at].start, sizes=SIZES)
        assert [chunk[:4] for chunk in again] == [chunk[:4] for chunk in found[at:]]


def test_pages_of_a_dataset_are_given_back(tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megagpt.data.sources_datasets._MAPPED_BYTES", 1000)
    rows: Rows = [f"row {number}" for number in range(5000)]
    datasets.Dataset.from_dict({"text": rows}).select(range(4999, -1, -1)).save_to_disk(tmp_path / "saved")
    (file,) = corpus_files([f"hf:{tmp_path}/saved"])
    assert file.dataset is not None
    assert len(list(next(column_arrays(file.dataset, "text"))[1])) == 5, "batches, after each of which pages go"
    found = read(file, tmp_path, sizes=Sizes())
    assert len(found) == 1
    check_chunks(found, rows[::-1], 100_000)
    assert found[-1].stored_bytes == file.size_bytes
    documents = list(read_documents([file.path]))
    assert [document.text for document in documents] == rows[::-1]
    assert [document.line for document in documents] == list(range(1, 5001))
    assert texts_of(read(file, tmp_path, 2500, 3500, sizes=Sizes())) == rows[::-1][2500:3500]
    assert line_of(file, 5) == 6
    ((path, _),) = file.dataset.files
    os.truncate(path, 2000)
    with pytest.raises(
        DataError, match=rf"the file {path} of the dataset cannot be read \(.*\); load the dataset again"
    ):
        read(file, tmp_path)


def test_splits_and_what_load_dataset_takes(tmp_path: Path, datasets: Any) -> None:
    train, test = (datasets.Dataset.from_dict({"text": [name], "n": [1]}) for name in ("train", "test"))
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    datasets.DatasetDict(train=train).save_to_disk(tmp_path / "one")
    train.save_to_disk(tmp_path / "plain")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jsonl").write_text('{"text": "from a file"}\n')

    def first(spelled: str) -> str:
        ((_, arrays),) = column_arrays(load_dataset(f"hf:{tmp_path}/{spelled}"), "text")
        return next(arrays)[0].as_py()

    assert [first(name) for name in ("both::test", "both::train")] == ["test", "train"]
    assert {first(name) for name in ("one", "one::train", "plain")} == {"train"}
    assert {first(name) for name in ("files", "files::train")} == {"from a file"}
    with pytest.raises(
        DataError, match=r"hf:\S+both has several splits; name one of hf:\S+both::train, hf:\S+both::test"
    ):
        corpus_files([f"hf:{tmp_path}/both"])
    with pytest.raises(DataError, match=r"hf:\S+both::dev has no split dev; name one of hf:\S+both::train, "):
        load_dataset(f"hf:{tmp_path}/both::dev")
    with pytest.raises(
        DataError, match=r"hf:\S+plain::train: this dataset was saved without splits; write hf:\S+plain$"
    ):
        load_dataset(f"hf:{tmp_path}/plain::train")
    with pytest.raises(DataError, match=r"folder \S+/plain was made by save_to_disk .*; write hf:\S+/plain$"):
        corpus_files([f"{tmp_path}/plain"])
    with pytest.raises(DataError, match=r"hf:\S+/one is named twice among the inputs"):
        corpus_files([f"hf:{tmp_path}/one", f"hf:{tmp_path}/one"])
    with pytest.raises(DataError, match=r"^hf:\S+plain:1: there is no column 'body'; the columns are: 'text', 'n'"):
        next(read_documents([f"hf:{tmp_path}/plain"], text_key="body"))
    found = load_dataset(f"hf:{tmp_path}/plain")
    (chunk,) = list(chunks(CorpusFile("hf:plain", found.stored_bytes, found), 0, "body", spool=tmp_path))
    payload = chunk.load()
    assert isinstance(payload, Texts)
    assert [bad.reason for _, bad in payload.bad] == ["no column 'body'"]


def test_datasets_that_cannot_be_had(tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"the dataset hf:\S+/none cannot be loaded \(FileNotFoundError: .*; check the name"
    ):
        load_dataset(f"hf:{tmp_path}/none")
    with pytest.raises(DataError, match=r"hf:no/such cannot be loaded \(\w+: .*no/such.*; .* the Hub can be reached"):
        corpus_files(["hf:no/such"])
    for spelled in ("hf:", "hf::x", "hf:a:b:c:d"):
        with pytest.raises(DataError, match=rf"{spelled} does not name a dataset; write hf:NAME\[:CONFIG\[:SPLIT\]\]"):
            corpus_files([spelled])
    chosen = datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).select([2, 0])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": chosen})
    with pytest.raises(
        DataError, match=r"hf:x/y is a selection of another dataset's rows; save it with flatten_indices"
    ):
        load_dataset("hf:x/y")


def test_the_package_datasets_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"reading hf:no/such needs the package datasets; pip install datasets"):
        corpus_files(["hf:no/such"])


def test_pyarrow_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet(tmp_path / "c.parquet", pyarrow.array(["a"]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"reading .parquet files needs the package pyarrow; pip install pyarrow"):
        read(file, tmp_path)


def test_tasks_share_a_dataset_by_rows_and_parquet_by_row_groups(tmp_path: Path, datasets: Any) -> None:
    rows: Rows = [f"row {number}" for number in range(50)]
    datasets.Dataset.from_dict({"text": rows}).save_to_disk(tmp_path / "saved")
    write_parquet(tmp_path / "c.parquet", pyarrow.array(rows), row_group_size=10)
    files = corpus_files([str(tmp_path / "c.parquet"), f"hf:{tmp_path}/saved"])
    for num_tasks in (1, 2, 3, 7, 200):
        joined: Rows = []
        for task in range(num_tasks):
            shares = assign_ranges(files, task, num_tasks)
            assert all(share.start % 10 == 0 and (share.stop or 0) % 10 == 0 for share in shares if share.file == 0)
            for number, start, stop in shares:
                joined += texts_of(list(chunks(files[number], number, "text", start, stop, spool=tmp_path)))
        assert joined == rows + rows, num_tasks
    (low, high) = (assign_ranges(files[1:], task, 2) for task in (0, 1))
    assert (low, high) == ([(0, 0, 25)], [(0, 25, None)])
