"""Files that are read in parts: what is filled, what of a file is read, and files that are not what they should be."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from megagpt.checkpoint import tensor_read
from megagpt.checkpoint.file_record import FileRecord, file_record
from megagpt.checkpoint.pieces import Copy
from megagpt.checkpoint.tensor_file import write_tensors
from megagpt.checkpoint.tensor_read import Fill, read_tensors
from megagpt.errors import DamagedCheckpointError

SIZES = {"a": 5000, "b": 3, "c": 70_000, "d": 4096}


def blocks(draw_from: st.SearchStrategy[int]) -> st.SearchStrategy[Copy]:
    """Copies from a source of at most 700 elements."""
    return st.tuples(draw_from, draw_from, draw_from, draw_from).map(
        lambda n: Copy((n[0], n[1] + n[2]), (n[3], n[1] + n[3]), 1 + n[2] % 7, n[1])
    )


@given(blocks(st.integers(1, 40)), st.lists(st.integers(0, 700), min_size=1, max_size=9))
def test_a_copy_in_parts_is_the_whole_copy(copy: Copy, cuts: list[int]) -> None:
    source = torch.arange(700.0)
    whole, parts = torch.zeros(700), torch.zeros(700)
    copy.run(source, whole)
    edges = [0, *sorted(cuts), 700]
    pieces = [(start, part) for start, stop in pairwise(edges) for part in copy.within(start, stop)]
    for start, part in pieces:
        part.run(source[start:], parts)
    assert torch.equal(parts, whole)
    assert sum(part.num_rows * part.num_columns for _, part in pieces) == copy.num_rows * copy.num_columns


@pytest.fixture
def values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}


@pytest.fixture
def file(tmp_path: Path, values: dict[str, Tensor]) -> tuple[Path, FileRecord]:
    path = tmp_path / "a.safetensors"
    return path, write_tensors(path, values)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was read of the file: (start, bytes). Parts are small."""
    found = []
    real = tensor_read._read

    def read(descriptor: int, part: tensor_read._Part) -> None:
        found.append((part.start, part.num_bytes))
        real(descriptor, part)

    monkeypatch.setattr(tensor_read, "_read", read)
    monkeypatch.setattr(tensor_read, "_PART_BYTES", 8192)
    monkeypatch.setattr(tensor_read, "_GAP_BYTES", 1024)
    return found


def part_of(key: str, start: int, stop: int, target: Tensor) -> Fill:
    return Fill(key, SIZES[key], Copy((start, stop - start), (0, stop - start), 1, stop - start), target)


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_filled(file, values, reads, verify):
    path, record = file
    targets = {name: torch.zeros(size) for name, size in SIZES.items()}
    fills = [part_of(name, 0, size, targets[name]) for name, size in SIZES.items()]
    every_third, block = torch.zeros(23_000), torch.zeros(60)
    fills.append(Fill("c", SIZES["c"], Copy((1, 3), (0, 1), 23_000, 1), every_third))
    fills.append(Fill("c", SIZES["c"], Copy((2000, 500), (0, 20), 3, 20), block))
    read_tensors(path, fills[::-1], record, verify)
    assert all(torch.equal(targets[name], value) for name, value in values.items())
    assert torch.equal(every_third, values["c"][1::3][:23_000])
    assert torch.equal(block.view(3, 20), values["c"][2000:3500].view(3, 500)[:, :20])
    assert sum(size for _, size in reads) == (record.num_bytes if verify else sum(SIZES.values()) * 4)


def test_only_the_parts_that_hold_what_is_wanted_are_read(file, values, reads):
    path, record = file
    target = [torch.zeros(size) for size in (100, 100, 3000)]
    fills = [part_of("c", 10, 110, target[0]), part_of("c", 200, 300, target[1]), part_of("c", 9000, 12_000, target[2])]
    read_tensors(path, fills, record, verify=False)
    wanted = (slice(10, 110), slice(200, 300), slice(9000, 12_000))
    assert all(torch.equal(values["c"][place], found) for place, found in zip(wanted, target, strict=True))
    assert [size for _, size in reads] == [290 * 4, 8192, 12_000 - 8192]  # two that are near each other, and a long one
    reads.clear()
    read_tensors(path, [], record, verify=False)
    assert reads == []


def test_a_changed_byte_is_found_where_the_hash_is_checked(file, reads):
    path, record = file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    target = torch.zeros(SIZES["a"])
    read_tensors(path, [part_of("a", 0, SIZES["a"], target)], record, verify=False)
    with pytest.raises(DamagedCheckpointError, match=r"a\.safetensors is damaged: its hash differs"):
        read_tensors(path, [], record, verify=True)


@pytest.mark.parametrize("place", [0, 7, 8, 20])
def test_a_changed_header_is_a_changed_file(file, place):
    path, record = file
    content = bytearray(path.read_bytes())
    content[place] ^= 8
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"a\.safetensors is damaged: its hash differs"):
        read_tensors(path, [part_of("a", 0, 1, torch.zeros(1))], record, verify=True)
    with pytest.raises(DamagedCheckpointError, match=r"a\.safetensors is damaged: .*; use another checkpoint"):
        read_tensors(path, [part_of("a", 0, 1, torch.zeros(1))], record, verify=False)


def test_a_file_that_ends_while_it_is_read(file, monkeypatch):
    path, record = file
    real = tensor_read._read

    def cut(descriptor: int, part: tensor_read._Part) -> None:
        os.truncate(path, 10_000)
        real(descriptor, part)

    monkeypatch.setattr(tensor_read, "_read", cut)
    with pytest.raises(DamagedCheckpointError, match=r"cannot be read \(it ends at byte 10000\)"):
        read_tensors(path, [], record, verify=True)


def test_tensors_of_other_kinds_between(tmp_path, values):
    """As other programs may write them."""
    path = tmp_path / "a.safetensors"
    others = {"half": torch.ones(7, dtype=torch.float16), "byte": torch.ones(5, dtype=torch.uint8)}
    save_file({**values, **others}, path)
    found = torch.zeros(SIZES["d"])
    read_tensors(path, [part_of("d", 0, SIZES["d"], found)], file_record(path), verify=True)
    assert torch.equal(found, values["d"])
