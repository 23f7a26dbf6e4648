"""What an export holds and how it was proven: the report beside the weights, and the model card. Text only."""

import json
from dataclasses import asdict, dataclass

from megagpt.checkpoint.manifest import Manifest

DTYPES = ("float32", "bfloat16", "float16")  # of stored weights; torch's names


@dataclass(frozen=True)
class ExportReport:
    """One export that was verified. Differences are the largest absolute ones between logits, in float32."""

    format: str
    model: str  # name in the configuration
    checkpoint: str  # name of the checkpoint's folder
    step: int
    tokens: int  # tokens trained on
    loss: float | None  # training loss of the last step, nats a token
    dtype: str  # of the stored weights
    num_parameters: int
    vocab_size: int
    num_padding_rows_cut: int
    num_logits_compared: int
    logits_max_difference: float  # to our model with the same stored weights
    logits_tolerance: float
    rounding_max_difference: float  # our model with stored weights to the float32 one; 0 for float32
    num_texts_compared: int  # every one had identical token ids, which decode alike
    verified_with: str  # name and version of the library that loaded it
    megagpt_version: str

    def to_json(self) -> str:
        """The text of export_report.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def summary(self) -> str:
        """A few lines for the terminal."""
        lines = [
            f"{self.model}, {self.num_parameters:,} parameters in {self.dtype}, from {self.checkpoint}",
            f"logits: largest difference {self.logits_max_difference:.2e} over {self.num_logits_compared:,} "
            f"(allowed {self.logits_tolerance:.0e}), {self.verified_with}",
            f"token ids: identical for {self.num_texts_compared:,} texts",
        ]
        if self.dtype != "float32":
            lines.insert(2, f"rounding to {self.dtype} changed logits by at most {self.rounding_max_difference:.2e}")
        return "\n".join(lines)


def model_card(manifest: Manifest, report: ExportReport) -> str:
    """README.md of the exported folder."""
    spec = manifest.spec
    loss = "unknown" if manifest.loss is None else f"{manifest.loss:.4f} nats a token (training batch of the last step)"
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
        "trained in": manifest.precision,
        "training steps": f"{manifest.step:,}",
        "tokens seen": f"{manifest.tokens:,}",
        "loss": loss,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {spec.name}

A GPT-3-style decoder (GPT-2 architecture in transformers: learned positions, pre-LayerNorm, tied embedding), trained
with megagpt {manifest.megagpt_version}.

| | |
|---|---|
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH/OF/THIS/FOLDER")
model = AutoModelForCausalLM.from_pretrained("PATH/OF/THIS/FOLDER")
inputs = tokenizer("PROMPT", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0], skip_special_tokens=True))
```

A text is encoded as it is: no symbol is added, and a control symbol written out in a text is plain text. Document ends
are marked by the token with id `eos_token_id`, which also stands before a document's first token.

When it was written, {report.verified_with} loaded it and gave the logits of the trained model within
{report.logits_max_difference:.2e}, and the same token ids for {report.num_texts_compared:,} texts
(`export_report.json`).
"""
