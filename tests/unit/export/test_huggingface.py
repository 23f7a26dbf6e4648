"""transformers gives our numbers from an export; an export wrong in any one way is refused and leaves nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import megagpt.export.huggingface as exporter
import megagpt.export.huggingface_tokenizer as tokenizer_exporter
from megagpt.data.batch import Batch
from megagpt.errors import CheckpointError, ConfigError, ExportError
from megagpt.export.files import Files
from megagpt.export.huggingface import export_huggingface
from megagpt.export.options import ExportOptions
from megagpt.formats.layouts import HUGGINGFACE, Layout
from megagpt.inference.generate import generate
from megagpt.inference.model import InferenceModel
from megagpt.inference.settings import SamplingSettings
from megagpt.model.reference import reference_logits
from megagpt.model.spec import ModelSpec
from megagpt.parallel.mesh import Mesh
from tests.unit.inference.tiny import SPEC, VOCAB_SIZE, random_parameters, write_checkpoint

transformers = pytest.importorskip("transformers")

FILES = {
    "README.md",
    "config.json",
    "export_report.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def reference(spec: ModelSpec, tokens: Tensor) -> Tensor:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    batch = Batch(tokens, tokens, torch.ones(tokens.shape), positions, None)
    return reference_logits(random_parameters(spec), spec, batch)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "gelu_erf"},
        {"layer_norm_epsilon": 1e-3},
        {"padded_vocab_size": VOCAB_SIZE},
        {"num_heads": 1, "num_layers": 1, "sequence_length": 2, "ffn_hidden_size": 32},
    ],
    ids=["tanh", "erf", "epsilon", "no padding", "smallest"],
)
def test_transformers_gives_the_logits_of_the_reference(
    changes: dict[str, Any], tmp_path: Path, tokenizer_path: Path, mesh: Mesh
) -> None:
    spec = replace(SPEC, **changes)
    checkpoint = write_checkpoint(tmp_path / "step-00000007", spec, random_parameters(spec), tokenizer_path)
    report = export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
    tokens = torch.randint(0, VOCAB_SIZE, (3, spec.sequence_length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = load(tmp_path / "hf")(input_ids=tokens).logits
    assert found.shape == (3, spec.sequence_length, VOCAB_SIZE)
    # measured worst 2.7e-6, of logits up to 6.1
    torch.testing.assert_close(found, reference(spec, tokens), rtol=0, atol=1e-5)
    assert 0 < report.logits_max_difference < 1e-5
    assert report.num_token_rows == VOCAB_SIZE


def test_the_folder_and_its_report(tmp_path: Path, checkpoint: Path, mesh: Mesh) -> None:
    report = export_huggingface(checkpoint, tmp_path / "new" / "hf", mesh=mesh)
    folder = tmp_path / "new" / "hf"
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["hf"], "nothing else is left"
    (tmp_path / "ordinary").touch()
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert modes == {(tmp_path / "ordinary").stat().st_mode}, "others may read what the umask lets them"
    assert json.loads((folder / "export_report.json").read_text()) == vars(report) | {"notes": []}
    assert (report.step, report.tokens, report.loss, report.dtype) == (7, 1234, 3.25, "float32")
    assert report.num_texts_compared == 3000
    assert report.num_parameters == sum(parameter.numel() for parameter in load(folder).parameters())
    card = (folder / "README.md").read_text()
    assert "| tokens seen | 1,234 |" in card
    assert "| loss | 3.2500 nats a token" in card
    config = json.loads((folder / "config.json").read_text())
    assert (config["resid_pdrop"], config["embd_pdrop"], config["attn_pdrop"]) == (0.1, 0.1, 0.2)


def test_transformers_generates_the_same_tokens(
    tmp_path: Path, checkpoint: Path, model: InferenceModel, mesh: Mesh
) -> None:
    export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
    prompt = [5, 280, 300]
    theirs = load(tmp_path / "hf").generate(torch.tensor([prompt]), max_new_tokens=15, do_sample=False)[0].tolist()
    ours = list(generate(model, [prompt], SamplingSettings(max_new_tokens=15, greedy=True)))
    assert theirs == prompt + [step.ids[0] for step in ours]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_dtypes_are_verified_with_the_weights_they_store(
    dtype: str, tmp_path: Path, checkpoint: Path, mesh: Mesh
) -> None:
    report = export_huggingface(checkpoint, tmp_path / "hf", ExportOptions(dtype), mesh=mesh)
    stored = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert stored.dtype == getattr(torch, dtype)
    assert report.logits_max_difference < 1e-5
    assert 1e-4 < report.rounding_max_difference < 0.1  # measured 3.8e-2 (bfloat16) and 4.9e-3 (float16)
    assert f"rounding to {dtype} changed logits by at most" in report.summary()


def misnamed(**parts: str) -> Layout:
    return replace(HUGGINGFACE, parts=HUGGINGFACE.parts | parts)


class TestRefusal:
    """Each export is broken in one way; none may pass, and what was there stays."""

    @pytest.mark.parametrize(
        "layout",
        [
            replace(HUGGINGFACE, qkv_by_kind=False),
            misnamed(attention_norm="ln_2", mlp_norm="ln_1"),
            misnamed(mlp_norm="ln_3"),
            replace(HUGGINGFACE, positions="unused.weight"),
        ],
        ids=["qkv", "norms swapped", "norm misnamed", "no positions"],
    )
    def test_wrong_weights(
        self, layout: Layout, tmp_path: Path, checkpoint: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exporter, "HUGGINGFACE", layout)
        with pytest.raises(ExportError, match=r"logits of transformers differ from ours by .* more than 1e-04 allows"):
            export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("activation", ["gelu", "relu"])
    def test_a_wrong_activation(
        self, activation: str, tmp_path: Path, checkpoint: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _change_config(monkeypatch, {"activation_function": activation})
        with pytest.raises(ExportError, match=r"logits of transformers differ from ours by .* more than 1e-04 allows"):
            export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
        assert list(tmp_path.iterdir()) == []

    def test_a_wrong_epsilon(
        self, tmp_path: Path, checkpoint: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _change_config(monkeypatch, {"layer_norm_epsilon": 1e-3})
        with pytest.raises(ExportError, match="logits of transformers differ"):
            export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)

    def test_a_folder_that_does_not_load(
        self, tmp_path: Path, checkpoint: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _change_config(monkeypatch, {"n_embd": 36})
        with pytest.raises(ExportError, match=r"transformers .* cannot load the export"):
            export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("kept", [0, 40])
    def test_wrong_merges(
        self, kept: int, tmp_path: Path, checkpoint: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        merges_of = tokenizer_exporter.merges_of
        monkeypatch.setattr(tokenizer_exporter, "merges_of", lambda pieces: merges_of(pieces)[:kept])
        with pytest.raises(ExportError, match=r"token ids of '.*' are \[.*\] in transformers, ours are \[.*\]"):
            export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"split_special_tokens": False}, r"token ids of '<unk>' are \[0\] in transformers"),
            (
                {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
                "not input_ids and attention_mask alone",
            ),
            ({"eos_token": "<unk>"}, "eos_token_id is 0 in transformers, ours is 1"),
        ],
        ids=["literal symbols", "token types", "end symbol"],
    )
    def test_wrong_tokenizer_settings(
        self,
        change: dict[str, Any],
        message: str,
        tmp_path: Path,
        checkpoint: Path,
        mesh: Mesh,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        write_json = Files.write_json
        monkeypatch.setattr(
            Files,
            "write_json",
            lambda files, name, values: write_json(files, name, values | (change if "token" in name else {})),
        )
        with pytest.raises(ExportError, match=message):
            export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)

    def test_an_earlier_export_stays_where_the_new_one_is_refused(
        self, tmp_path: Path, checkpoint: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
        before = _contents(tmp_path)
        monkeypatch.setattr(exporter, "HUGGINGFACE", replace(HUGGINGFACE, qkv_by_kind=False))
        with pytest.raises(ExportError, match="logits of transformers differ"):
            export_huggingface(checkpoint, tmp_path / "hf", ExportOptions(overwrite=True), mesh)
        assert _contents(tmp_path) == before

    def test_a_full_disk(self, tmp_path: Path, checkpoint: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_space(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Files, "write_json", no_space)
        with pytest.raises(ExportError, match=r"could not write .*hf: .*No space left on device; free space"):
            export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
        assert list(tmp_path.iterdir()) == []


class TestTarget:
    """What may lie at --output."""

    def test_an_existing_folder_is_refused(self, tmp_path: Path, checkpoint: Path) -> None:
        (tmp_path / "hf").mkdir()
        with pytest.raises(ConfigError, match=r"hf exists; choose another --output, or replace .* with --overwrite"):
            export_huggingface(checkpoint, tmp_path / "hf")

    def test_overwrite_replaces_an_earlier_export(self, tmp_path: Path, checkpoint: Path, mesh: Mesh) -> None:
        export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
        (tmp_path / "hf" / "README.md").write_text("old")
        export_huggingface(checkpoint, tmp_path / "hf", ExportOptions("bfloat16", overwrite=True), mesh)
        assert {path.name for path in (tmp_path / "hf").iterdir()} == FILES
        assert "| stored as | bfloat16 |" in (tmp_path / "hf" / "README.md").read_text()
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]

    def test_overwrite_leaves_other_folders_alone(self, tmp_path: Path, checkpoint: Path) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
        with pytest.raises(ConfigError, match=r"thesis is not an export .* so --overwrite leaves it alone"):
            export_huggingface(checkpoint, tmp_path / "thesis", ExportOptions(overwrite=True))
        assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"

    def test_overwrite_leaves_files_alone(self, tmp_path: Path, checkpoint: Path) -> None:
        (tmp_path / "notes").write_text("notes")
        with pytest.raises(ConfigError, match="notes is not a folder; choose another --output"):
            export_huggingface(checkpoint, tmp_path / "notes", ExportOptions(overwrite=True))

    def test_a_place_that_cannot_be_written(self, tmp_path: Path, checkpoint: Path, mesh: Mesh) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match=r"cannot write .*file/hf: .* choose another --output"):
            export_huggingface(checkpoint, tmp_path / "file" / "hf", mesh=mesh)


class TestArguments:
    """Told before anything is read or written."""

    def test_an_unknown_dtype(self, tmp_path: Path, checkpoint: Path) -> None:
        with pytest.raises(ConfigError, match="dtype 'int8' is unknown to --format hf; use float32, bfloat16, float16"):
            export_huggingface(checkpoint, tmp_path / "hf", ExportOptions("int8"))

    def test_transformers_is_missing(self, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ConfigError, match=r"cannot be imported .* install it: pip install 'megagpt\[export\]'"):
            export_huggingface(checkpoint, tmp_path / "hf")

    def test_a_checkpoint_without_a_tokenizer(self, tmp_path: Path, mesh: Mesh) -> None:
        checkpoint = write_checkpoint(tmp_path / "c", SPEC, random_parameters(SPEC), None)
        with pytest.raises(CheckpointError, match=r"c has no tokenizer to export; train with tokenizer\.path set"):
            export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)

    def test_weights_too_large_for_float16(self, tmp_path: Path, tokenizer_path: Path, mesh: Mesh) -> None:
        parameters = random_parameters(SPEC)
        parameters["final_norm.weight"][3] = 1e5
        checkpoint = write_checkpoint(tmp_path / "c", SPEC, parameters, tokenizer_path)
        with pytest.raises(ConfigError, match=r"final_norm\.weight holds 1e\+05, too large for --dtype float16"):
            export_huggingface(checkpoint, tmp_path / "hf", ExportOptions("float16"), mesh)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _change_config(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    original = exporter.huggingface_config
    monkeypatch.setattr(exporter, "huggingface_config", lambda *arguments: original(*arguments) | changes)
