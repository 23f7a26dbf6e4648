"""One export from source to finished folder, the same for every format. In: a source, a format. Out: a proven folder.

Written to a temporary folder beside the target, verified there, renamed last: a target that exists is whole and, as far
as its report says, true.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

import megagpt
from megagpt.errors import CheckpointError, ConfigError
from megagpt.export.exporter import Exporter
from megagpt.export.files import FolderFiles
from megagpt.export.formats import find_exporter
from megagpt.export.options import ExportOptions
from megagpt.export.probes import probe_tokens
from megagpt.export.report import ExportReport, model_card
from megagpt.export.target import REPORT_NAME, check_output, put_in_place, temporary_beside
from megagpt.formats.open_source import open_source
from megagpt.formats.source import ModelSource, RoundedSource
from megagpt.inference.model import InferenceModel, load_for_inference
from megagpt.parallel.mesh import Mesh, build_mesh
from megagpt.tokenizer import Tokenizer

DEFAULT_OPTIONS = ExportOptions()


def export_model(
    source: str | Path | ModelSource,
    output: str | Path,
    export_format: str | Exporter = "hf",
    options: ExportOptions = DEFAULT_OPTIONS,
    mesh: Mesh | None = None,
) -> ExportReport:
    """Write a model for other software and prove, as far as `options.verify` asks, that it gives our numbers there.

    `source` is a model or a folder that `open_source` knows. The proof is in float32, against our model with the
    weights as stored. `mesh` is a mesh of one rank; without one it is built where a model is needed, and stays until
    `destroy_mesh()`.

    Raises ConfigError for a bad argument, a missing library or what the format cannot express, CheckpointError, and
    ExportError where the proof fails. What was at `output` is then as before, and nothing is left beside it.
    """
    exporter = find_exporter(export_format) if isinstance(export_format, str) else export_format
    if options.dtype not in exporter.dtypes:
        raise ConfigError(
            f"dtype {options.dtype!r} is unknown to --format {exporter.format}; use {', '.join(exporter.dtypes)}"
        )
    output = Path(os.path.abspath(output))
    check_output(output, options.overwrite)
    client = None if options.verify == "none" else require_client(exporter)
    source = source if isinstance(source, ModelSource) else open_source(source)
    tokenizer = require_tokenizer(source)
    exporter.check(source, tokenizer, options)
    with temporary_beside(output) as folder:
        files = FolderFiles(folder)
        exporter.write(source, tokenizer, files, options)
        report = _prove(exporter, source, tokenizer, folder, options, mesh, client)
        files.write_text("README.md", model_card(source, report, exporter.library, exporter.card(source, options)))
        files.write_text(REPORT_NAME, report.to_json())
        put_in_place(folder, output)
    return report


def require_client(exporter: Exporter) -> str:
    """Name and version of a format's client. Raises ConfigError with the command that installs it."""
    try:
        return exporter.client_version()
    except ImportError as error:
        raise ConfigError(
            f"the export is verified with {exporter.client}, which cannot be imported ({error}); "
            f"install it: {exporter.install}, or write without proof: --verify none"
        ) from None


def require_tokenizer(source: ModelSource) -> Tokenizer:
    """The source's tokenizer. Raises CheckpointError where it has none."""
    if source.tokenizer is None:
        raise CheckpointError(f"{source.folder} has no tokenizer to export; train with tokenizer.path set")
    return source.tokenizer


def _prove(
    exporter: Exporter,
    source: ModelSource,
    tokenizer: Tokenizer,
    folder: Path,
    options: ExportOptions,
    mesh: Mesh | None,
    client: str | None,
) -> ExportReport:
    """What was written, and what of it was compared."""
    spec, facts = source.spec, source.facts
    num_rows = exporter.num_token_rows(source, options)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    report = ExportReport(
        format=exporter.format,
        model=spec.name,
        source=source.folder.name,
        source_format=source.format,
        step=facts.step if facts else None,
        tokens=facts.tokens if facts else None,
        loss=facts.loss if facts else None,
        dtype=options.dtype,
        num_parameters=num_parameters(source, num_rows),
        vocab_size=spec.vocab_size,
        num_token_rows=num_rows,
        files=sizes,
        verify=options.verify,
        verified_with=client,
        megagpt_version=megagpt.__version__,
    )
    if options.verify == "none":
        return report.with_nothing("neither logits nor token ids nor the files were compared with anything")
    if options.verify == "sample":
        return report.with_sample(exporter.verify_sample(source, tokenizer, folder, options))
    stored, rounding = _as_stored(source, mesh or build_mesh(1, 1), exporter.stored_dtype(options))
    return report.with_proof(exporter.verify(stored, tokenizer, folder, options), rounding)


def num_parameters(source: ModelSource, num_token_rows: int) -> int:
    """Elements of all parameters with so many rows of the token table."""
    total = sum(torch.Size(info.shape).numel() for info in source.infos.values())
    return total + (num_token_rows - source.spec.padded_vocab_size) * source.spec.hidden_size


def _as_stored(source: ModelSource, mesh: Mesh, dtype: str) -> tuple[InferenceModel, float]:
    """Our model with the weights as `dtype` stores them, and how far that moved the logits of the float32 weights."""
    if dtype == "float32":
        return load_for_inference(source, mesh), 0.0
    exact = _probe_logits(load_for_inference(source, mesh))  # one of the two models in memory at a time
    stored = load_for_inference(RoundedSource(source, getattr(torch, dtype)), mesh)
    differences = [float((left - right).abs().max()) for left, right in zip(exact, _probe_logits(stored), strict=True)]
    return stored, max(differences)


def _probe_logits(model: InferenceModel) -> list[Tensor]:
    return [model.logits(tokens.to(model.device)) for tokens in probe_tokens(model.spec)]
