"""Finding a checkpoint; and joining the shards of format 1, written here by hand, to the whole model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megagpt.checkpoint.file_record import file_record
from megagpt.checkpoint.manifest import CheckpointLayout
from megagpt.checkpoint.read import find_checkpoint, read_manifest, read_model
from megagpt.checkpoint.version_1 import model_file
from megagpt.errors import CheckpointError
from megagpt.model.init import local_slice
from megagpt.model.names import TOKEN_EMBEDDING, parameter_shapes
from tests.unit.checkpoint.samples import sample_manifest
from tests.unit.model.small import random_parameters, small_spec

SPEC = small_spec(num_layers=4)
PARAMETERS = {name: value.detach() for name, value in random_parameters(SPEC).items()}
INFOS = parameter_shapes(SPEC)


def held_by(pipeline_rank: int, pipeline: int) -> list[str]:
    """Names on one pipeline rank, with the tied table at both ends."""
    per_rank = SPEC.num_layers // pipeline
    mine = range(pipeline_rank * per_rank, (pipeline_rank + 1) * per_rank)
    names = [name for name in INFOS if name.startswith("layers.") and int(name.split(".")[1]) in mine]
    if pipeline_rank == 0:
        names += [name for name in INFOS if name.startswith("embedding.")]
    if pipeline_rank == pipeline - 1:
        names += [TOKEN_EMBEDDING, "final_norm.weight", "final_norm.bias"]
    return sorted(set(names))


def write(folder: Path, tensor: int, pipeline: int, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir(parents=True)
    for p in range(pipeline):
        for t in range(tensor):
            shard = {
                name: local_slice(PARAMETERS[name], INFOS[name], t, tensor).contiguous().to(dtype)
                for name in held_by(p, pipeline)
            }
            save_file(shard, folder / model_file(t, p))
    layout = CheckpointLayout(tensor, pipeline, 1, 1, False, 1)
    seal(folder, replace(sample_manifest(7), format_version=1, optimizer=None, spec=SPEC, layout=layout))
    return folder


def seal(folder: Path, manifest) -> None:
    """A manifest of the files as they are now."""
    files = {path.name: file_record(path) for path in folder.glob("*.safetensors")}
    (folder / "manifest.json").write_text(replace(manifest, files=files).to_json(), encoding="utf-8")


def edit(folder: Path, name: str, change) -> None:
    """Rewrite a shard with changed tensors, and the manifest to go with it: damage that no hash can show."""
    shard: dict[str, Tensor] = load_file(folder / name)
    change(shard)
    save_file(shard, folder / name)
    seal(folder, read_manifest(folder))


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2), (4, 4)])
def test_shards_join_to_the_whole(tmp_path, tensor, pipeline):
    loaded = read_model(write(tmp_path / "c", tensor, pipeline))
    assert list(loaded.parameters) == list(INFOS)
    assert all(torch.equal(loaded.parameters[name], PARAMETERS[name]) for name in INFOS)
    assert loaded.manifest.spec == SPEC
    assert loaded.folder == tmp_path / "c"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_in_float32(tmp_path, dtype):
    loaded = read_model(write(tmp_path / "c", 2, 2, dtype))
    for name, value in loaded.parameters.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, PARAMETERS[name].to(dtype).float())


def test_a_missing_shard(tmp_path):
    folder = write(tmp_path / "c", 2, 2)
    (folder / model_file(1, 0)).unlink()
    with pytest.raises(CheckpointError, match=r"model-t01-p00\.safetensors is missing; the checkpoint is not whole"):
        read_model(folder)
    seal(folder, read_manifest(folder))
    with pytest.raises(CheckpointError, match=r"holds no model-t01-p00\.safetensors; it is not whole"):
        read_model(folder)


def test_a_flipped_byte(tmp_path):
    folder = write(tmp_path / "c", 1, 1)
    path = folder / model_file(0, 0)
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model-t00-p00\.safetensors is damaged: its hash differs"):
        read_model(folder)
    read_model(folder, verify=False)  # was asked not to look
    path.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match=r"model-t00-p00\.safetensors has \d+ bytes, its manifest says \d+"):
        read_model(folder, verify=False)


def test_a_file_that_is_no_safetensors(tmp_path):
    folder = write(tmp_path / "c", 1, 1)
    (folder / model_file(0, 0)).write_bytes(b"no tensors here")
    seal(folder, read_manifest(folder))
    with pytest.raises(CheckpointError, match=r"model-t00-p00\.safetensors is damaged: .*; use another checkpoint"):
        read_model(folder)


def test_an_unknown_parameter(tmp_path):
    folder = write(tmp_path / "c", 1, 1)
    edit(folder, model_file(0, 0), lambda shard: shard.update({"layers.0.gate.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"unknown parameter layers\.0\.gate\.weight; was it written by a newer"):
        read_model(folder)


def test_a_missing_parameter(tmp_path):
    folder = write(tmp_path / "c", 2, 1)
    edit(folder, model_file(1, 0), lambda shard: shard.pop("layers.2.mlp.up.bias"))
    with pytest.raises(CheckpointError, match=r"holds 1 of 2 parts of layers\.2\.mlp\.up\.bias; it is not whole"):
        read_model(folder)


@pytest.mark.parametrize("shape", [(40, 31), (41, 32), (32,), (80, 32)])
def test_a_part_of_the_wrong_shape(tmp_path, shape):
    folder = write(tmp_path / "c", 2, 1)
    edit(folder, model_file(1, 0), lambda shard: shard.update({"layers.1.mlp.up.weight": torch.ones(shape)}))
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.up\.weight in .*model-t01-p00.* has shape .* \(40, 32\)"
    ):
        read_model(folder)


def test_the_paths_by_which_a_checkpoint_is_found(tmp_path):
    run = tmp_path / "run"
    folder = write(run / "checkpoints" / "step-00000007", 1, 1)
    (run / "checkpoints" / "latest").write_text("step-00000007\n")
    for path in (folder, run, run / "checkpoints", str(run)):
        assert find_checkpoint(path) == folder


def test_paths_that_lead_to_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist; give a run folder or a checkpoint folder"):
        find_checkpoint(tmp_path / "nowhere")
    looked = r"looked for manifest\.json, checkpoints/latest and latest; give a run folder"
    with pytest.raises(CheckpointError, match=rf"no checkpoint in {tmp_path}: {looked}"):
        find_checkpoint(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=rf"no checkpoint in .*file: {looked}"):
        find_checkpoint(tmp_path / "file")
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000002\n")
    with pytest.raises(CheckpointError, match=r"latest names step-00000002, which has no manifest\.json; name a"):
        find_checkpoint(tmp_path)
