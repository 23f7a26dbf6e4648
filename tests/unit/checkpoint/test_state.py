"""Reading a checkpoint's pieces: of any layout, and every way in which they can be wrong has its message."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megagpt.checkpoint.differences import RunIdentity
from megagpt.checkpoint.file_record import file_record
from megagpt.checkpoint.index import INDEX_NAME, Index, Place, file_of, moments_file, tensor_key, weights_file
from megagpt.checkpoint.load import check_belongs, load_share
from megagpt.checkpoint.manifest import CheckpointLayout
from megagpt.checkpoint.pieces import KINDS, Piece, num_slices, slice_size
from megagpt.checkpoint.read import read_manifest, read_model
from megagpt.checkpoint.state import StateReader
from megagpt.config_file import load_config
from megagpt.errors import CheckpointError
from megagpt.model.init import local_slice
from megagpt.model.names import parameter_shapes
from tests.unit.checkpoint.samples import SPEC, sample_manifest, sample_parameters, whole_piece

INFOS = parameter_shapes(SPEC)
NAME = "layers.0.mlp.down.weight"  # [8, 32], split over its columns


def write(folder: Path, tensor: int, shares: int, precision: str = "fp32") -> Path:
    """A checkpoint of `tensor` * `shares` ranks, each with an even share of each slice."""
    folder.mkdir()
    pieces: dict[str, list[Place]] = {}
    for rank in range(tensor * shares):
        tensor_rank, share = rank % tensor, rank // tensor
        files: dict[str, dict[str, Tensor]] = {}
        for name, values in sample_parameters().items():
            slices = num_slices(INFOS[name], tensor)
            if slices == 1 and tensor_rank > 0:
                continue
            local = local_slice(values, INFOS[name], tensor_rank, slices)
            size = local.numel()
            piece = whole_piece(name, local).narrow(size * share // shares, size * (share + 1) // shares)
            pieces.setdefault(name, []).append(Place(rank, tensor_rank, piece.start, piece.stop))
            for kind in KINDS:
                files.setdefault(file_of(rank, kind), {})[tensor_key(name, kind)] = piece.tensor(kind)
        for file, tensors in files.items():
            save_file(tensors, folder / file)
    (folder / INDEX_NAME).write_text(Index(tensor, pieces).to_json())
    layout = CheckpointLayout(tensor, 1, 1, shares, False, 1)
    seal(folder, replace(sample_manifest(7), layout=layout, precision=precision))
    return folder


def seal(folder: Path, manifest) -> None:
    """A manifest of the files as they are now: damage that no hash can show."""
    files = {path.name: file_record(path) for path in folder.iterdir() if path.name != "manifest.json"}
    (folder / "manifest.json").write_text(replace(manifest, files=files).to_json())


def reader(folder: Path) -> StateReader:
    return StateReader(folder, read_manifest(folder))


def edit_index(folder: Path, change: Callable[[dict[str, list[Place]]], object]) -> None:
    index = Index.from_json((folder / INDEX_NAME).read_text(), folder)
    change(index.pieces)
    (folder / INDEX_NAME).write_text(index.to_json())
    seal(folder, read_manifest(folder))


@pytest.mark.parametrize(("tensor", "shares"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 3), (4, 4)])
def test_any_layout_reads_any_other(tmp_path, tensor, shares):
    found = reader(write(tmp_path / "c", tensor, shares))
    for name, values in sample_parameters().items():
        for tensor_ranks in (1, 2, 4):
            slices = num_slices(INFOS[name], tensor_ranks)
            size = slice_size(INFOS[name], slices)
            for number in range(slices):
                piece = whole_piece(name, torch.full((size,), -1.0)).narrow(size // 5, size)
                piece = piece._replace(tensor_slice=number)
                for kind in KINDS:
                    piece.tensor(kind).fill_(-1)
                found.fill([piece], tensor_ranks)
                wanted = whole_piece(name, local_slice(values, INFOS[name], number, slices)).narrow(size // 5, size)
                assert all(torch.equal(piece.tensor(kind), wanted.tensor(kind)) for kind in KINDS)
        assert torch.equal(found.whole([name], "exp_avg")[name], values / 2)
    model = read_model(tmp_path / "c")
    assert all(torch.equal(model.parameters[name], values) for name, values in sample_parameters().items())


def test_a_model_is_read_as_the_run_computed_with_it(tmp_path):
    model = read_model(write(tmp_path / "c", 2, 2, "bf16"))
    for name, values in sample_parameters().items():
        assert model.parameters[name].dtype == torch.float32
        assert torch.equal(model.parameters[name], values.bfloat16().float())


def test_only_what_is_needed_is_read(tmp_path):
    """A rank touches only files that hold its elements, and the model needs no moments."""
    folder = write(tmp_path / "c", 2, 2)
    for rank in (0, 1, 3):
        (folder / moments_file(rank)).unlink()
        (folder / weights_file(rank)).unlink()
    place = next(place for place in reader(folder)._index.pieces[NAME] if place.rank == 2)
    held = torch.zeros(place.stop - place.start)
    piece = Piece(NAME, place.tensor_slice, place.start, place.stop, held, held.clone(), held.clone())
    reader(folder).fill([piece], 2)
    assert held.any()
    folder = write(tmp_path / "d", 1, 2)
    for rank in range(2):
        (folder / moments_file(rank)).unlink()
    read_model(folder)


def remove(pieces: dict[str, list[Place]]) -> None:
    del pieces[NAME][1]


def repeat(pieces: dict[str, list[Place]]) -> None:
    pieces[NAME].append(Place(3, 1, 10, 20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, rf"{NAME}, slice 1; it is not whole"),
        (lambda pieces: pieces.pop(NAME), rf"holds no elements 0 to 127 of {NAME}, slice 0; it is not whole"),
        (repeat, rf"ranks 1 and 3 both hold elements 10 to 19 of {NAME}, slice 1; use another"),
        (lambda pieces: pieces[NAME].append(Place(0, 2, 0, 9)), r"no elements 0 to 8 in slice 2: there are 2 slices"),
        (lambda pieces: pieces[NAME].append(Place(0, 1, 0, 129)), r"no elements 0 to 128 in slice 1: .* of 128 elem"),
        (lambda pieces: pieces.update(gate=[]), r"holds an unknown parameter gate; was it written by a newer megagpt"),
    ],
)
def test_pieces_that_do_not_make_a_whole(tmp_path, change, message):
    folder = write(tmp_path / "c", 2, 2)
    edit_index(folder, change)
    with pytest.raises(CheckpointError, match=rf"index\.json.*{message}"):
        reader(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"tensor_ranks": 1}', '{"tensor_ranks": 1, "pieces": {"a": [[0, 0, 1]]}}'])
def test_a_damaged_index(tmp_path, text):
    folder = write(tmp_path / "c", 1, 1)
    (folder / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json has \d+ bytes, its manifest says"):
        reader(folder)
    seal(folder, read_manifest(folder))
    with pytest.raises(CheckpointError, match=r"index\.json is damaged: .*; use another checkpoint"):
        reader(folder)


def test_tensor_ranks_that_do_not_divide(tmp_path):
    folder = write(tmp_path / "c", 1, 1)
    (folder / INDEX_NAME).write_text(
        (folder / INDEX_NAME).read_text().replace('"tensor_ranks": 1', '"tensor_ranks": 3')
    )
    seal(folder, read_manifest(folder))
    with pytest.raises(CheckpointError, match=r"divides embedding\.tokens\.weight of shape \(128, 8\) over 3 tensor"):
        reader(folder)


def rewrite(folder: Path, file: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    seal(folder, read_manifest(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(tensor_key(NAME, "master")), rf"damaged: .*{NAME}/master"),
        (
            lambda tensors: tensors.update({tensor_key(NAME, "master"): torch.ones(5)}),
            rf"{NAME}/master in .*weights-rank00001\.safetensors has shape \(5,\) .*, the index says \(64,\)",
        ),
        (
            lambda tensors: tensors.update({tensor_key(NAME, "master"): torch.ones(64).half()}),
            r"has shape \(64,\) and F16, the index says \(64,\) and F32",
        ),
    ],
)
def test_pieces_other_than_the_index_says(tmp_path, change, message):
    folder = write(tmp_path / "c", 2, 2)
    rewrite(folder, weights_file(1), change)
    with pytest.raises(CheckpointError, match=message):
        read_model(folder)


def test_damaged_and_missing_files_are_named(tmp_path):
    folder = write(tmp_path / "c", 1, 2)
    manifest = read_manifest(folder)
    path = folder / moments_file(1)
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    load_share(folder, manifest, [], 1, 0, 4)  # another rank's share
    with pytest.raises(CheckpointError, match=r"moments-rank00001\.safetensors is damaged: its hash differs"):
        load_share(folder, manifest, [], 1, 3, 4)  # more ranks than wrote it: a file each
    load_share(folder, manifest, [], 1, 0, 2)
    with pytest.raises(CheckpointError, match=r"moments-rank00001\.safetensors is damaged: its hash differs"):
        load_share(folder, manifest, [], 1, 1, 2)  # what it wrote itself
    read_model(folder)  # its files are whole
    path.write_bytes(b"no tensors here")
    seal(folder, manifest)
    with pytest.raises(CheckpointError, match=r"moments-rank00001\.safetensors is damaged: .*; use another checkpoint"):
        reader(folder).whole([NAME], "exp_avg")
    path.unlink()
    with pytest.raises(
        CheckpointError, match=r"moments-rank00001\.safetensors is missing; the checkpoint is not whole"
    ):
        reader(folder).whole([NAME], "exp_avg")
    seal(folder, manifest)
    with pytest.raises(CheckpointError, match=r"holds no moments-rank00001\.safetensors; it is not whole"):
        reader(folder).whole([NAME], "exp_avg")


def test_a_flipped_byte_in_the_weights(tmp_path):
    folder = write(tmp_path / "c", 1, 2)
    content = bytearray((folder / weights_file(0)).read_bytes())
    content[-5] ^= 4
    (folder / weights_file(0)).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights-rank00000\.safetensors is damaged: its hash differs"):
        read_model(folder)
    read_model(folder, verify=False)  # was asked not to look


def test_no_run_continues_from_format_1(tmp_path):
    folder = write(tmp_path / "c", 1, 1)
    manifest = read_manifest(folder)
    run = RunIdentity(SPEC, "fp32", 1, None)
    assert check_belongs(folder, run, load_config(None, [])) == manifest
    seal(folder, replace(manifest, format_version=1, optimizer=None))
    message = r"cannot continue from .*: it has format 1, .* megagpt 0\.0\.0 reads, .* Continue with that version, or"
    with pytest.raises(CheckpointError, match=message):
        check_belongs(folder, run, load_config(None, []))
