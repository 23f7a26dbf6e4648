"""Files that are written in one pass: what safetensors reads back, the hash, disks that fail or know no O_DIRECT."""

import errno
import os
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from megagpt.checkpoint import tensor_file
from megagpt.checkpoint.file_record import FileRecord
from megagpt.checkpoint.tensor_file import write_tensors


def tensors(*sizes: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"layers.{n}.权": torch.randn(size, generator=generator) for n, size in enumerate(sizes)}


def hash_of(content: bytes) -> str:
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_PART_BYTES", 8192)


@pytest.mark.parametrize("sizes", [(1,), (1024,), (5, 2048, 1, 7000), (2048, 2048), (40_000, 3), ()])
@pytest.mark.usefixtures("small_parts")
def test_safetensors_reads_what_was_written(tmp_path, sizes):
    path, values = tmp_path / "a.safetensors", tensors(*sizes)
    written = write_tensors(path, values)
    found = load_file(path)
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], value) for name, value in values.items())
    content = path.read_bytes()
    assert written == FileRecord(len(content), hash_of(content))


def test_parts_of_their_real_size(tmp_path):
    values = tensors(3_000_000, 10, 2_500_000)
    written = write_tensors(tmp_path / "a", values)
    assert hash_of((tmp_path / "a").read_bytes()) == written.hash
    assert all(torch.equal(load_file(tmp_path / "a")[name], value) for name, value in values.items())


def test_views_and_every_bit(tmp_path):
    bits = torch.tensor([0x7FC00001, 0x7F800001, -0x80000000, 1, -1], dtype=torch.int32).view(torch.float32)
    write_tensors(tmp_path / "a", {"x": torch.cat([torch.zeros(3), bits])[3:]})
    assert torch.equal(load_file(tmp_path / "a")["x"].view(torch.int32), bits.view(torch.int32)), "NaNs, too"


@pytest.mark.parametrize("refused_at", ["open", "write"])
@pytest.mark.usefixtures("small_parts")
def test_a_file_system_without_direct_writes(tmp_path, monkeypatch, refused_at):
    real_open, real_write = os.open, os.write
    refused = []

    def refusing_open(path, flags, mode=0o777):
        handle = real_open(path, flags, mode)
        if flags & os.O_DIRECT and refused_at == "open":
            os.close(handle)
            refused.append(path)
            raise OSError(errno.EINVAL, "Invalid argument")
        return handle

    def refusing_write(handle, content):
        if tensor_file.fcntl.fcntl(handle, tensor_file.fcntl.F_GETFL) & os.O_DIRECT and refused_at == "write":
            refused.append(handle)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(handle, content)

    monkeypatch.setattr(os, "open", refusing_open)
    monkeypatch.setattr(os, "write", refusing_write)
    values = tensors(5, 7000)
    written = write_tensors(tmp_path / "a", values)
    assert refused
    assert hash_of((tmp_path / "a").read_bytes()) == written.hash
    assert all(torch.equal(load_file(tmp_path / "a")[name], value) for name, value in values.items())


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.usefixtures("small_parts")
def test_a_disk_that_fails(tmp_path, monkeypatch, after):
    """The thread that writes fails: it is told, and nobody waits for it."""
    real, calls = os.write, []

    def write(handle: int, content: memoryview) -> int:
        calls.append(handle)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, content)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left on device"):
        write_tensors(tmp_path / "a", tensors(100_000))
    assert len(calls) == after + 1


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "a", tensors(4))
    assert (tmp_path / "a").read_text() == "mine"
