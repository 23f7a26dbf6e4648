"""A model as a Hugging Face GPT-2 folder: sharded safetensors, config.json and tokenizer, proven with transformers."""

from pathlib import Path
from typing import Any

from megagpt.export.exporter import Exporter, Proof, Sampled
from megagpt.export.files import Files
from megagpt.export.options import ExportOptions
from megagpt.export.report import ExportReport
from megagpt.export.run import DEFAULT_OPTIONS, export_model
from megagpt.export.safetensors_files import write_safetensors
from megagpt.export.tensors import out_tensors
from megagpt.formats.layouts import HUGGINGFACE
from megagpt.formats.source import ModelSource
from megagpt.inference.model import InferenceModel
from megagpt.model.spec import ModelSpec
from megagpt.parallel.mesh import Mesh
from megagpt.tokenizer import Tokenizer

# transformers/activations.py: gelu_new is the tanh approximation, gelu the exact form
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}
_CARD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH/OF/THIS/FOLDER")
model = AutoModelForCausalLM.from_pretrained("PATH/OF/THIS/FOLDER")
inputs = tokenizer("PROMPT", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0], skip_special_tokens=True))
```

GPT-2 architecture in transformers. A text is encoded as it is: no symbol is added, and a control symbol written out in
a text is plain text. Document ends are marked by the token with id `eos_token_id`, which also stands before a
document's first token."""


def export_huggingface(
    source: str | Path | ModelSource,
    output: str | Path,
    options: ExportOptions = DEFAULT_OPTIONS,
    mesh: Mesh | None = None,
) -> ExportReport:
    """Write a model as a Hugging Face folder and prove that transformers gives the same logits and token ids.

    See `export_model` for arguments and errors.
    """
    return export_model(source, output, HuggingFaceExporter(), options, mesh)


class HuggingFaceExporter(Exporter):
    """`--format hf`."""

    format = "hf"
    library = client = "transformers"

    def client_version(self) -> str:
        """transformers and its version. Raises ImportError."""
        import transformers

        return f"transformers {transformers.__version__}"

    def write(self, source: ModelSource, tokenizer: Tokenizer, files: Files, options: ExportOptions) -> None:
        """Tokenizer, configuration, weights. Raises ConfigError for a tokenizer that cannot be expressed."""
        from megagpt.export.huggingface_tokenizer import write_tokenizer  # imports the tokenizers library

        spec = source.spec
        write_tokenizer(tokenizer, files, spec.sequence_length)
        files.write_json("config.json", huggingface_config(spec, tokenizer.eod_id, options.dtype))
        files.write_json("generation_config.json", generation_config(tokenizer.eod_id))
        tensors = out_tensors(source, HUGGINGFACE, options.dtype, spec.vocab_size)
        write_safetensors(files, tensors, options.shard_bytes)

    def verify(self, ours: InferenceModel, tokenizer: Tokenizer, folder: Path, options: ExportOptions) -> Proof:
        """Logits and token ids."""
        from megagpt.export.huggingface_verify import verify

        return verify(ours, tokenizer, folder)

    def verify_sample(self, source: ModelSource, tokenizer: Tokenizer, folder: Path, options: ExportOptions) -> Sampled:
        """Token ids, all names and shapes, and every tensor's values as they lie in the files."""
        from megagpt.export.huggingface_verify import verify_names, verify_tokenizer
        from megagpt.export.read_back import compare_files

        tensors = out_tensors(source, HUGGINGFACE, options.dtype, source.spec.vocab_size)
        verify_names(folder, {tensor.name: tensor.shape for tensor in tensors})
        num_compared = compare_files(folder, tensors)
        return Sampled(num_compared, verify_tokenizer(tokenizer, folder), "logits: the model was not run")

    def usage(self, folder: str) -> str:
        """One line."""
        return f'load it with: transformers.AutoModelForCausalLM.from_pretrained("{folder}")'

    def card(self, source: ModelSource, options: ExportOptions) -> str:
        """Python that loads it."""
        return _CARD


def huggingface_config(spec: ModelSpec, eod_id: int, dtype: str) -> dict[str, Any]:
    """config.json of the model. Every value that decides the numbers is written, none left to a default."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": spec.vocab_size,
        "n_positions": spec.sequence_length,
        "n_embd": spec.hidden_size,
        "n_layer": spec.num_layers,
        "n_head": spec.num_heads,
        "n_inner": spec.ffn_hidden_size,
        "activation_function": ACTIVATIONS[spec.activation],
        "layer_norm_epsilon": spec.layer_norm_epsilon,
        "embd_pdrop": spec.hidden_dropout,
        "resid_pdrop": spec.hidden_dropout,
        "attn_pdrop": spec.attention_dropout,
        "initializer_range": spec.init_std,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": eod_id,  # a document follows the end of the one before it
        "eos_token_id": eod_id,
        "pad_token_id": eod_id,
        "torch_dtype": dtype,
    }


def generation_config(eod_id: int) -> dict[str, Any]:
    """generation_config.json: the sampling that `megagpt generate` starts from."""
    return {
        "bos_token_id": eod_id,
        "eos_token_id": eod_id,
        "pad_token_id": eod_id,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 0.9,
    }
