"""A checkpoint as a Hugging Face GPT-2 folder. In: a checkpoint. Out: a folder that transformers was seen to agree on.

Written to a temporary folder beside the target, verified there, renamed last: a target that exists is whole and true.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

import megagpt
from megagpt.durable import flush_folder
from megagpt.errors import CheckpointError, ConfigError, ExportError
from megagpt.export.huggingface_weights import (
    generation_config,
    huggingface_config,
    huggingface_parameters,
    round_to,
)
from megagpt.export.report import DTYPES, ExportReport, model_card
from megagpt.formats.checkpoint_source import CheckpointSource
from megagpt.formats.source import MemorySource
from megagpt.inference.model import InferenceModel, load_for_inference
from megagpt.model.spec import ModelSpec
from megagpt.parallel.mesh import Mesh, build_mesh
from megagpt.tokenizer import Tokenizer

REPORT_NAME = "export_report.json"


def export_huggingface(
    checkpoint: str | Path,
    output: str | Path,
    dtype: str = "float32",
    overwrite: bool = False,
    mesh: Mesh | None = None,
) -> ExportReport:
    """Write a checkpoint as a Hugging Face folder and prove that transformers gives the same logits and token ids.

    `dtype` is that of the stored weights: float32, bfloat16 or float16; the proof is in float32, against our model with
    the weights as stored. `overwrite` replaces an earlier export, nothing else. `mesh` is a mesh of one rank; without
    one it is built here, and stays until `destroy_mesh()`.

    Raises ConfigError for a bad argument, a missing library or a tokenizer that cannot be expressed, CheckpointError,
    and ExportError where the proof fails. What was at `output` is then as before, and nothing is left beside it.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; use {', '.join(DTYPES)}")
    output = Path(os.path.abspath(output))
    check_output(output, overwrite)
    library = require_transformers()
    source = CheckpointSource(checkpoint)
    if source.tokenizer is None:
        raise CheckpointError(f"{source.folder} has no tokenizer to export; train with tokenizer.path set")
    mesh = mesh or build_mesh(1, 1)
    with temporary_beside(output) as folder:
        report = _write_and_verify(source, source.tokenizer, folder, dtype, mesh, library)
        _put_in_place(folder, output)
    return report


def check_output(output: Path, overwrite: bool) -> None:
    """Raise ConfigError where `output` exists and is not an earlier export that may be replaced."""
    if not output.exists() and not output.is_symlink():
        return
    if not overwrite:
        raise ConfigError(f"{output} exists; choose another --output, or replace an earlier export with --overwrite")
    if output.is_symlink() or not output.is_dir():
        raise ConfigError(f"{output} is not a folder; choose another --output")
    if any(output.iterdir()) and not (output / REPORT_NAME).is_file():
        raise ConfigError(
            f"{output} is not an export (it has no {REPORT_NAME}), so --overwrite leaves it alone; "
            "choose another --output"
        )


def require_transformers() -> str:
    """Name and version of transformers. Raises ConfigError with the command that installs it."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"the export is verified with transformers, which cannot be imported ({error}); "
            "install it: pip install 'megagpt[export]'"
        ) from None
    return f"transformers {transformers.__version__}"


@contextmanager
def temporary_beside(output: Path) -> Iterator[Path]:
    """A new folder on the file system of `output`, removed again unless it was renamed; parents are made as needed.

    Raises ConfigError where it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error}; choose another --output") from None
    try:
        yield folder
    except OSError as error:
        raise ExportError(f"could not write {output}: {error}; free space or choose another --output") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_and_verify(
    source: CheckpointSource, tokenizer: Tokenizer, folder: Path, dtype: str, mesh: Mesh, library: str
) -> ExportReport:
    """Write all files into `folder`, compare, and write the report and the model card."""
    # slow to import, and transformers is optional
    from megagpt.export.huggingface_verify import LOGITS_TOLERANCE, verify

    parameters = {name: source.read(name) for name in source.infos}
    _write_model(source.spec, parameters, tokenizer, folder, dtype)
    stored, rounding = _as_stored(source, parameters, mesh, dtype)
    agreement = verify(stored, tokenizer, folder)
    manifest, spec = source.manifest, source.spec
    num_cut = spec.padded_vocab_size - spec.vocab_size
    report = ExportReport(
        format="hf",
        model=spec.name,
        checkpoint=source.folder.name,
        step=manifest.step,
        tokens=manifest.tokens,
        loss=manifest.loss,
        dtype=dtype,
        num_parameters=sum(value.numel() for value in parameters.values()) - num_cut * spec.hidden_size,
        vocab_size=spec.vocab_size,
        num_padding_rows_cut=num_cut,
        num_logits_compared=agreement.num_logits,
        logits_max_difference=agreement.logits_max_difference,
        logits_tolerance=LOGITS_TOLERANCE,
        rounding_max_difference=rounding,
        num_texts_compared=agreement.num_texts,
        verified_with=library,
        megagpt_version=megagpt.__version__,
    )
    (folder / "README.md").write_text(model_card(manifest, report), encoding="utf-8")
    (folder / REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
    return report


def _write_model(
    spec: ModelSpec, parameters: dict[str, Tensor], tokenizer: Tokenizer, folder: Path, dtype: str
) -> None:
    from safetensors.torch import save_file

    from megagpt.export.huggingface_tokenizer import write_tokenizer

    write_tokenizer(tokenizer, folder, spec.sequence_length)
    _write_json(folder / "config.json", huggingface_config(spec, tokenizer.eod_id, dtype))
    _write_json(folder / "generation_config.json", generation_config(tokenizer.eod_id))
    weights = huggingface_parameters(parameters, spec, dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _as_stored(
    source: CheckpointSource, parameters: dict[str, Tensor], mesh: Mesh, dtype: str
) -> tuple[InferenceModel, float]:
    """Our model with the weights as `dtype` stores them, and how far that moved the logits of the float32 weights."""
    exact = load_for_inference(source, mesh)
    if dtype == "float32":
        return exact, 0.0
    from megagpt.export.huggingface_verify import probe_tokens

    rounded = {name: round_to(value, name, dtype).float() for name, value in parameters.items()}
    stored = load_for_inference(MemorySource(source.spec, rounded, source.tokenizer, source.folder), mesh)
    moved = 0.0
    for tokens in probe_tokens(source.spec):
        tokens = tokens.to(mesh.device)
        moved = max(moved, float((exact.logits(tokens) - stored.logits(tokens)).abs().max()))
    return stored, moved


def _put_in_place(folder: Path, output: Path) -> None:
    """Make the finished `folder` appear as `output`, an earlier export moved aside first and removed last."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)  # mkdtemp makes folders private, and safetensors its files
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if not output.exists():
        folder.rename(output)
    else:
        earlier = folder.with_name(folder.name + ".earlier")
        output.rename(earlier)
        try:
            folder.rename(output)
        except OSError:
            earlier.rename(output)
            raise
        shutil.rmtree(earlier)
    flush_folder(output.parent)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
