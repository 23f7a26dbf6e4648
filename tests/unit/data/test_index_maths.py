"""The maths of serving samples: native and NumPy agree, and both hold past 2^31 documents and 2^40 tokens."""

import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data import index_numpy
from megagpt.data.index_core import IndexCore, index_core, is_native
from megagpt.data.index_numpy import Documents
from megagpt.data.index_order import order_key
from megagpt.data.indexed import HEADER, MAGIC, IndexedDataset
from megagpt.data.samples import GROUP, SampleIndex
from megagpt.data.splits import PLACES, split_bounds
from tests.unit.data.orders import plain_order, plain_place, plain_split
from tests.unit.data.virtual import PRIME, VirtualTokens, virtual_documents, virtual_starts

ALL = (1.0, 0.0, 0.0)


@pytest.fixture
def native() -> IndexCore:
    if not is_native(index_core()):
        pytest.skip("megagpt.native._samples is not built")
    return index_core()


def documents_of(lengths: list[int], dtype: np.dtype, cuts: list[int], low: int, high: int) -> Documents:
    """Sequences of `lengths`; `cuts` are the first sequences of documents, none: every sequence is one."""
    pointers = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64) * dtype.itemsize
    bounds = np.array(cuts, dtype=np.int64) if cuts else None
    end = int(sum(lengths)) * dtype.itemsize
    return Documents(np.array(lengths, dtype=np.int32), pointers, bounds, dtype.itemsize, end, low, high)


def starts_of(core: IndexCore, documents: Documents, key: bytes | None, group: int) -> np.ndarray:
    starts = np.full(-(-documents.num_documents // group) + 1, -1, dtype=np.int64)
    core.group_starts(documents, key, group, starts)
    return starts


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=120).filter(any),
    dtype=st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64]),
    shares=st.sampled_from([ALL, (0.7, 0.2, 0.1), (0.1, 0.85, 0.05)]),
    length=st.integers(1, 50),
    group=st.sampled_from([1, 3, 16, 256]),
    shuffled=st.booleans(),
    data=st.data(),
)
def test_native_and_numpy_agree_with_a_plain_reading(
    lengths: list[int],
    dtype: type,
    shares: tuple[float, float, float],
    length: int,
    group: int,
    shuffled: bool,
    data: st.DataObject,
) -> None:
    cuts = data.draw(st.just([]) | st.lists(st.integers(0, len(lengths)), max_size=20).map(lambda c: sorted([0, *c])))
    cuts = [*cuts, len(lengths)] if cuts else []
    documents = documents_of(lengths, np.dtype(dtype), cuts, *split_bounds(shares, "train"))
    ids = np.random.default_rng(sum(lengths)).integers(0, 100, sum(lengths)).astype(dtype)
    bounds = cuts or list(range(len(lengths) + 1))
    offsets = np.concatenate(([0], np.cumsum(lengths)))[bounds]
    key, window_key = (order_key(3, "d"), order_key(3, "w")) if shuffled else (None, None)

    count = len(bounds) - 1
    places = plain_order(key, count) if key else list(range(count))
    inside = set(plain_split(count, shares, "train"))
    order = [number for number in places if number in inside]
    epoch = np.concatenate([ids[:0], *(ids[offsets[number] : offsets[number + 1]] for number in order)])
    num_windows = max(len(epoch) - 1, 0) // length
    if num_windows == 0:
        return
    numbers = np.array(data.draw(st.lists(st.integers(0, num_windows - 1), min_size=1, max_size=8)))
    windows = [plain_place(window_key, num_windows, n) if window_key else n for n in numbers.tolist()]
    expected = [epoch[window * length : (window + 1) * length + 1].tolist() for window in windows]

    for core in {id(core): core for core in (index_core(), index_core(native=False))}.values():
        assert core.split_totals(documents) == (len(order), len(epoch))
        starts = starts_of(core, documents, key, group)
        tokens_each = [int(offsets[n + 1] - offsets[n]) if n in inside else 0 for n in places]
        assert starts.tolist() == [sum(tokens_each[: g * group]) for g in range(len(starts))]
        out = np.full((len(numbers), length + 1), -1, dtype=np.int64)
        rows = np.arange(len(numbers))[::-1].copy()
        name = f"{np.dtype(dtype).kind}{np.dtype(dtype).itemsize}"
        core.gather(ids, name, documents, key, starts, group, window_key, num_windows, numbers, rows, length, out)
        assert out[rows].tolist() == expected


def test_the_native_module_refuses_what_does_not_fit(native: IndexCore) -> None:
    documents = documents_of([5, 5], np.dtype(np.uint16), [], 0, PLACES)
    ids = np.arange(10, dtype=np.uint16)
    starts = starts_of(native, documents, None, 16)
    out, rows = np.empty((1, 4), dtype=np.int64), np.zeros(1, dtype=np.int64)

    def gather(**changed: object) -> None:
        values = {
            "tokens": ids,
            "type": "u2",
            "documents": documents,
            "key": None,
            "starts": starts,
            "group": 16,
            "window_key": None,
            "num_windows": 3,
            "numbers": np.zeros(1, dtype=np.int64),
            "rows": rows,
            "length": 3,
            "out": out,
        }
        native.gather(*{**values, **changed}.values())

    gather()
    for changed, message in (
        ({"numbers": np.array([3])}, "a sample or row does not exist"),
        ({"numbers": np.array([-1])}, "a sample or row does not exist"),
        ({"rows": np.array([1])}, "a sample or row does not exist"),
        ({"num_windows": 99, "numbers": np.array([50])}, "the index does not belong to the dataset"),
        ({"starts": starts + 7}, "the index does not belong to the dataset"),
        ({"starts": starts - 7}, "the index does not belong to the dataset"),
        ({"documents": documents._replace(pointers=documents.pointers + 16)}, "does not belong to the dataset"),
        ({"type": "f4"}, "do not fit together"),
        ({"key": b"short"}, "do not fit together"),
        ({"tokens": ids[:9]}, "do not fit together"),
        ({"starts": starts[:1]}, "do not fit together"),
        ({"out": np.empty((1, 5), dtype=np.int64)}, "do not fit together"),
        ({"documents": documents._replace(lengths=documents.lengths[:1])}, "do not fit together"),
    ):
        with pytest.raises(ValueError, match=message):
            gather(**changed)
    with pytest.raises(ValueError, match="size of out"):
        native.group_starts(documents, None, 16, np.empty(1, dtype=np.int64))


@pytest.mark.parametrize(("num_documents", "tokens_each"), [(2**31 + 16 * 7, 600), (2**33, 513), (2**35 + 16, 2**20)])
def test_past_2_31_documents_and_2_40_tokens(num_documents: int, tokens_each: int) -> None:
    """Windows of an epoch whose arrays do not fit into memory, against the order's definition."""
    assert num_documents > 2**31
    assert num_documents * tokens_each > 2**40
    documents = virtual_documents(num_documents, tokens_each)
    starts = virtual_starts(num_documents, tokens_each, GROUP)
    key, window_key, length = order_key(7, "documents/train/0"), order_key(7, "samples/train/0"), 2048
    num_windows = (num_documents * tokens_each - 1) // length
    numbers = np.array([0, 1, 2**29, num_windows // 2, num_windows - 1])
    out = np.zeros((len(numbers), length + 1), dtype=np.int64)
    index_numpy.gather(
        VirtualTokens(), "", documents, key, starts, GROUP, window_key, num_windows, numbers, np.arange(5), length, out
    )
    windows = [plain_place(window_key, num_windows, number) for number in numbers.tolist()]
    assert max(windows) * length > 2**40
    for window, row in zip(windows, out.tolist(), strict=True):
        expected = []
        for place in range(window * length, (window + 1) * length + 1):
            position, within = divmod(place, tokens_each)
            if within == 0 or not expected:
                first = plain_place(key, num_documents, position) * tokens_each
            expected.append((first + within) % PRIME)
        assert row == expected


def test_samples_past_2_31_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """SampleIndex itself: counts, epochs and sample numbers of a corpus of 2^31 + 160 documents, 2^43 tokens."""
    num_documents, tokens_each = 2**31 + 160, 4096
    documents = virtual_documents(num_documents, tokens_each)
    dataset = SimpleNamespace(
        prefix="virtual",
        dtype=np.dtype(np.uint16),
        num_tokens=num_documents * tokens_each,
        arrays=SimpleNamespace(
            lengths=documents.lengths, pointers=documents.pointers, bounds=None, tokens=VirtualTokens()
        ),
    )
    samples = SampleIndex(dataset, "train", ALL, 2048, seed=7, native=False)  # type: ignore[arg-type]
    monkeypatch.setattr(samples, "_make_index", lambda epoch: virtual_starts(num_documents, tokens_each, GROUP))
    assert samples.num_documents == num_documents
    assert samples.samples_per_epoch == (num_documents * tokens_each - 1) // 2048 > 2**32
    far = [5, samples.samples_per_epoch - 1, samples.samples_per_epoch, 3 * samples.samples_per_epoch + 2**32]
    tokens = samples.tokens_of_many(far)
    steps = np.diff(tokens, axis=1) % PRIME
    assert ((steps != 1).sum(axis=1) <= 1).all(), "two documents at most"
    assert len(np.unique(tokens[:, 0])) == len(far)


def test_a_dataset_of_2_40_tokens(tmp_path: Path, native: IndexCore) -> None:
    """A file with holes, 2 TiB long: the native module reads the right places of it, as NumPy does."""
    num_documents, tokens_each, length = 1025, 2**30, 64
    lengths = np.full(num_documents, tokens_each, dtype="<i4")
    pointers = np.arange(num_documents, dtype="<i8") * tokens_each * 2
    head = HEADER.pack(MAGIC, 1, 8, num_documents, num_documents + 1)
    (tmp_path / "d.idx").write_bytes(head + lengths.tobytes() + pointers.tobytes() + bounds_of(num_documents))
    key, window_key = order_key(1, "documents/train/0"), order_key(1, "samples/train/0")
    num_windows = (num_documents * tokens_each - 1) // length
    places = {n: plain_place(window_key, num_windows, n) * length for n in (0, 3, num_windows - 1)}
    with (tmp_path / "d.bin").open("wb") as file:
        try:
            file.truncate(num_documents * tokens_each * 2)
        except OSError:
            pytest.skip("this file system has no files of 2 TiB")
        for number, place in places.items():
            position, within = divmod(place, tokens_each)
            file.seek((plain_place(key, num_documents, position) * tokens_each + within) * 2)
            file.write(struct.pack("<65H", *range(number % 1000 + 1, number % 1000 + 66)))
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.num_tokens > 2**40
    assert max(places.values()) > 2**39
    for fast in (True, False):
        samples = SampleIndex(dataset, "train", ALL, length, seed=1, native=fast)
        for number, row in zip(places, samples.tokens_of_many(list(places)).tolist(), strict=True):
            assert row == list(range(number % 1000 + 1, number % 1000 + 66))


def bounds_of(num_documents: int) -> bytes:
    return np.arange(num_documents + 1, dtype="<i8").tobytes()
