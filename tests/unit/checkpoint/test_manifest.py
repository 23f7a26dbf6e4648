"""The manifest: what it says comes back, and every way in which it or its files can be wrong has its message."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megagpt import __version__
from megagpt.checkpoint.file_record import FileRecord, check_file, file_record
from megagpt.checkpoint.index import moments_file, weights_file
from megagpt.checkpoint.manifest import (
    FORMAT_VERSION,
    LossScale,
    Manifest,
    OptimizerProgress,
    step_folder,
    write_durably,
)
from megagpt.checkpoint.read import read_manifest
from megagpt.errors import CheckpointError, DamagedCheckpointError
from tests.unit.checkpoint.samples import sample_manifest

WHERE = Path("run/checkpoints/step-00000007/manifest.json")


def sample() -> Manifest:
    manifest = sample_manifest(7)
    return replace(manifest, tokenizer_file="tokenizer.model", files={"a.pt": FileRecord(3, "xxh3_128:" + "00" * 16)})


def changed(**values) -> str:
    """A manifest without a hash of its own, as earlier ones were."""
    found = json.loads(sample().to_json())
    del found["sha256"]
    return json.dumps(found | values)


def test_round_trip():
    for manifest in (
        sample(),
        replace(sample(), loss=None, tokenizer_fingerprint="中文", data_fingerprint="1"),
        replace(sample(), optimizer=OptimizerProgress(5, LossScale(65536.0, 7, 3, 2))),
    ):
        assert Manifest.from_json(manifest.to_json(), WHERE) == manifest


def test_names_sort_by_number():
    assert step_folder(100) == "step-00000100"
    assert weights_file(1023) == "weights-rank01023.safetensors"
    assert moments_file(7) == "moments-rank00007.safetensors"
    assert sorted([step_folder(1000), step_folder(99)]) == [step_folder(99), step_folder(1000)]


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "1", None])
def test_another_version_is_refused(version):
    message = (
        rf"manifest\.json has format version {version}, written by megagpt 0\.0\.0; this megagpt, {__version__}, reads "
        "1 to 2: install the one that wrote it, or a newer one"
    )
    with pytest.raises(CheckpointError, match=message):
        Manifest.from_json(changed(format_version=version), WHERE)


def test_the_kind_of_the_tokenizer():
    manifest = replace(sample(), tokenizer_kind="wordpiece-cased")
    assert Manifest.from_json(manifest.to_json(), WHERE) == manifest
    earlier = json.loads(changed())
    del earlier["tokenizer_kind"]
    assert Manifest.from_json(json.dumps(earlier), WHERE).tokenizer_kind is None, "as earlier checkpoints"
    with pytest.raises(
        CheckpointError, match=r"names a tokenizer of kind 'xlnet', which this megagpt does not know; u"
    ):
        Manifest.from_json(changed(tokenizer_kind="xlnet"), WHERE)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "{}", changed()[:-20]])
def test_what_is_no_manifest(text):
    with pytest.raises(CheckpointError, match=r"step-00000007/manifest\.json is not a checkpoint manifest"):
        Manifest.from_json(text, WHERE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step_count": 3}, "unexpected keyword argument 'step_count'"),
        ({"spec": {"name": "x"}}, "missing keys"),
        ({"spec": None}, "NoneType"),
        ({"spec": json.loads(sample().to_json())["spec"] | {"num_heads": 3}}, "model's sizes do not fit together"),
        ({"layout": {"tensor": 1}}, "missing .* required positional arguments"),
        ({"layout": json.loads(sample().to_json())["layout"] | {"expert": 2}}, "unexpected keyword argument 'expert'"),
        ({"optimizer": {"updates": 3}}, "loss_scale"),
        ({"optimizer": {"loss_scale": None}}, "missing .* 'updates'"),
        ({"optimizer": {"updates": 3, "loss_scale": {"scale": 1.0}}}, "missing 3 required positional arguments"),
        ({"optimizer": 3}, "'int' object"),
        ({"precision": "fp8"}, "precision is 'fp8', none of fp32, bf16, fp16"),
        ({"files": ["a.pt"]}, "'list' object"),
        ({"files": {"a.pt": {"num_bytes": 3}}}, "'hash'"),
        ({"files": {"a.pt": {"num_bytes": 3, "hash": "md5:00"}}}, "'md5:00' is no hash that this megagpt knows"),
        ({"files": {"a.pt": {"num_bytes": 3, "hash": 5}}}, "'int' object"),
    ],
)
def test_a_damaged_manifest_names_the_file_and_what_is_wrong(values, message):
    with pytest.raises(CheckpointError, match=rf"manifest\.json is damaged: .*{message}.*; use another checkpoint"):
        Manifest.from_json(changed(**values), WHERE)


def test_a_missing_entry_is_named():
    values = json.loads(changed())
    del values["step"]
    with pytest.raises(CheckpointError, match="missing 1 required positional argument: 'step'"):
        Manifest.from_json(json.dumps(values), WHERE)


def test_version_1_had_no_progress_of_the_optimizer():
    values = json.loads(changed(format_version=1))
    del values["optimizer"]
    manifest = Manifest.from_json(json.dumps(values), WHERE)
    assert (manifest.format_version, manifest.optimizer) == (1, None)


def test_every_flipped_byte_is_found():
    """Also one that would make it a manifest of a newer version, or another number."""
    content = sample().to_json().encode()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        with pytest.raises(DamagedCheckpointError, match=r"is damaged: its (own )?hash|is not a|unexpected keyword"):
            Manifest.from_json(flipped.decode("utf-8", "replace"), WHERE)


def test_a_newer_version_is_not_damage():
    newer = replace(sample(), format_version=FORMAT_VERSION + 1).to_json()
    with pytest.raises(CheckpointError, match="install the one that wrote it, or a newer one") as raised:
        Manifest.from_json(newer, WHERE)
    assert not isinstance(raised.value, DamagedCheckpointError)


def test_read_manifest(tmp_path):
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing: .* is not a whole checkpoint"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(sample().to_json(), encoding="utf-8")
    assert read_manifest(tmp_path) == sample()


def test_a_manifest_that_is_no_text(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b'{"format_version": 1, "\xff')
    with pytest.raises(CheckpointError, match=r"manifest\.json is not a checkpoint manifest"):
        read_manifest(tmp_path)


def test_check_file(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"abc")
    record = file_record(tmp_path / "a.pt")
    assert record == FileRecord(3, "xxh3_128:06b05ab6733a618578af5f94892f3950")  # as xxhsum -H2 says
    check_file(tmp_path, "a.pt", record, verify_hash=True)
    with pytest.raises(CheckpointError, match=r"b\.pt is missing; the checkpoint is not whole"):
        check_file(tmp_path, "b.pt", record, verify_hash=False)
    (tmp_path / "a.pt").write_bytes(b"abd")
    check_file(tmp_path, "a.pt", record, verify_hash=False)
    with pytest.raises(CheckpointError, match=r"a\.pt is damaged: its hash differs"):
        check_file(tmp_path, "a.pt", record, verify_hash=True)
    (tmp_path / "a.pt").write_bytes(b"ab")
    with pytest.raises(CheckpointError, match=r"a\.pt has 2 bytes, its manifest says 3"):
        check_file(tmp_path, "a.pt", record, verify_hash=False)


def test_the_first_checkpoints_had_sha256(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180
    values = changed(files={"a.pt": {"num_bytes": 3, "sha256": sha256}})
    manifest = Manifest.from_json(values, WHERE)
    check_file(tmp_path, "a.pt", manifest.files["a.pt"], verify_hash=True)
    (tmp_path / "a.pt").write_bytes(b"abd")
    with pytest.raises(DamagedCheckpointError, match=r"a\.pt is damaged: its hash differs"):
        check_file(tmp_path, "a.pt", manifest.files["a.pt"], verify_hash=True)
    assert Manifest.from_json(manifest.to_json(), WHERE) == manifest


def test_write_durably_replaces_whole_files(tmp_path):
    write_durably(tmp_path / "latest", "one\n")
    write_durably(tmp_path / "latest", "two\n")
    assert (tmp_path / "latest").read_text() == "two\n"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
