"""What an export holds and how it was proven: the report beside the weights, and the model card. Text only."""

import json
from dataclasses import asdict, dataclass, field, replace

from megagpt.export.exporter import Proof, Sampled
from megagpt.formats.source import ModelSource


@dataclass(frozen=True)
class ExportReport:
    """One export. Differences are the largest absolute ones between logits, in float32; None: not compared."""

    format: str
    model: str  # name in the configuration
    source: str  # name of the folder it was read from
    source_format: str
    step: int | None  # None: another software's model, as with the next two
    tokens: int | None  # tokens trained on
    loss: float | None  # training loss of the last step, nats a token
    dtype: str  # of the stored weights
    num_parameters: int
    vocab_size: int
    num_token_rows: int  # of the stored token table
    files: dict[str, int] = field(default_factory=dict)  # bytes by name
    verify: str = "full"
    num_logits_compared: int = 0
    logits_max_difference: float | None = None  # to our model with the same stored weights
    logits_tolerance: float | None = None
    rounding_max_difference: float | None = None  # our model with stored weights to the float32 one
    num_texts_compared: int = 0  # every one had identical token ids
    num_parameters_compared: int = 0  # tensors read back from the files
    notes: tuple[str, ...] = ()
    not_verified: str | None = None  # None: all was
    verified_with: str | None = None  # name and version of the library that loaded it
    megagpt_version: str = ""

    def with_proof(self, proof: Proof, rounding: float) -> "ExportReport":
        """After a comparison with the client."""
        return replace(
            self,
            num_logits_compared=proof.num_logits,
            logits_max_difference=proof.logits_max_difference,
            logits_tolerance=proof.logits_tolerance,
            rounding_max_difference=rounding,
            num_texts_compared=proof.num_texts,
            notes=proof.notes,
        )

    def with_sample(self, sampled: Sampled) -> "ExportReport":
        """After a comparison of some of it."""
        return replace(
            self,
            num_texts_compared=sampled.num_texts,
            num_parameters_compared=sampled.num_parameters_compared,
            not_verified=sampled.not_verified,
        )

    def with_nothing(self, not_verified: str) -> "ExportReport":
        """After no comparison."""
        return replace(self, not_verified=not_verified)

    def to_json(self) -> str:
        """The text of export_report.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def summary(self) -> str:
        """A few lines for the terminal."""
        size = sum(self.files.values())
        lines = [
            f"{self.model}, {self.num_parameters:,} parameters in {self.dtype}, from {self.source}: "
            f"{len(self.files)} files, {size:,} bytes"
        ]
        if self.logits_max_difference is not None and self.logits_tolerance is not None:
            lines.append(
                f"logits: largest difference {self.logits_max_difference:.2e} over {self.num_logits_compared:,} "
                f"(allowed {self.logits_tolerance:.0e}), {self.verified_with}"
            )
            if self.rounding_max_difference:
                lines.append(f"rounding to {self.dtype} changed logits by at most {self.rounding_max_difference:.2e}")
        if self.num_parameters_compared:
            lines.append(f"files: {self.num_parameters_compared:,} tensors read back are those of the source")
        if self.num_texts_compared:
            lines.append(f"token ids: identical for {self.num_texts_compared:,} texts")
        lines += self.notes
        if self.not_verified:
            lines.append(f"NOT VERIFIED (--verify {self.verify}): {self.not_verified}")
        return "\n".join(lines)


def model_card(source: ModelSource, report: ExportReport, library: str, client_text: str) -> str:
    """README.md of the exported folder.

    `client_text`: what the files are and how the client, of the Python package `library`, loads them; Markdown.
    """
    spec, facts = source.spec, source.facts
    rows = {
        "layers": spec.num_layers,
        "heads": spec.num_heads,
        "hidden size": spec.hidden_size,
        "feed-forward size": spec.ffn_hidden_size,
        "context (tokens)": spec.sequence_length,
        "vocabulary": spec.vocab_size,
        "activation": spec.activation,
        "parameters": f"{report.num_parameters:,}",
        "stored as": report.dtype,
    }
    if facts is None:
        rows["converted from"] = f"a {source.format}; its training is not recorded there"
    else:
        loss = "unknown" if facts.loss is None else f"{facts.loss:.4f} nats a token (training batch of the last step)"
        rows |= {
            "trained in": facts.precision,
            "training steps": f"{facts.step:,}",
            "tokens seen": f"{facts.tokens:,}",
            "data": facts.data or "not recorded",
            "loss": loss,
        }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    trained = f"trained with megagpt {facts.megagpt_version}" if facts else "converted with megagpt"
    return f"""---
library_name: {library}
pipeline_tag: text-generation
---
# {spec.name}

A GPT-3-style decoder (learned positions, pre-LayerNorm, tied embedding), {trained}.

| | |
|---|---|
{table}

{client_text.strip()}

{_proof_text(report)} (`export_report.json`).
"""


def _proof_text(report: ExportReport) -> str:
    if report.not_verified:
        return f"**Not verified** when it was written: {report.not_verified}"
    return (
        f"When it was written, {report.verified_with} loaded it and gave the logits of the model within "
        f"{report.logits_max_difference:.2e}, and the same token ids for {report.num_texts_compared:,} texts"
    )
