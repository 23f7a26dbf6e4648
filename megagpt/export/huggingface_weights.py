"""A model as Hugging Face's GPT-2: parameters and config.json. In: ours by global name. Out: theirs.

Legend: V vocabulary without padding, H hidden, N heads, D head dim. Knows no files and no tokenizer.
"""

from typing import Any

import torch
from torch import Tensor

from megagpt.errors import ConfigError
from megagpt.model.names import POSITION_EMBEDDING, TOKEN_EMBEDDING
from megagpt.model.spec import ModelSpec

# transformers/activations.py: gelu_new is the tanh approximation, gelu the exact form
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}
_LAYER_NAMES = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def huggingface_name(name: str) -> str:
    """The name in GPT2LMHeadModel of one of our parameters. The tied lm_head has none of its own."""
    if name == TOKEN_EMBEDDING:
        return "transformer.wte.weight"
    if name == POSITION_EMBEDDING:
        return "transformer.wpe.weight"
    module, _, kind = name.rpartition(".")
    if module == "final_norm":
        return f"transformer.ln_f.{kind}"
    _, number, part = module.split(".", 2)
    return f"transformer.h.{number}.{_LAYER_NAMES[part]}.{kind}"


def qkv_by_kind(rows: Tensor, spec: ModelSpec) -> Tensor:
    """Rows ordered [head][q|k|v][head_dim] put into the order Q | K | V; [3H, H] or [3H]."""
    by_head = rows.unflatten(0, (spec.num_heads, 3, spec.head_dim))
    return by_head.transpose(0, 1).flatten(0, 2)


def huggingface_parameters(parameters: dict[str, Tensor], spec: ModelSpec, dtype: str) -> dict[str, Tensor]:
    """All parameters under Hugging Face's names in `dtype`; linears [in, out] as their Conv1D wants them.

    Rows of the token table that pad the vocabulary are cut off. Raises ConfigError where a weight is too large for
    `dtype`.
    """
    converted = {}
    for name, value in parameters.items():
        if name == TOKEN_EMBEDDING:
            value = value[: spec.vocab_size]
        if ".attention.qkv." in name:
            value = qkv_by_kind(value, spec)
        if value.ndim == 2 and not name.startswith("embedding."):
            value = value.T
        converted[huggingface_name(name)] = round_to(value, name, dtype).contiguous()
    return converted


def round_to(value: Tensor, name: str, dtype: str) -> Tensor:
    """A parameter in `dtype`. Raises ConfigError where it becomes infinite."""
    rounded = value.to(getattr(torch, dtype))
    if bool(value.isfinite().all()) and not bool(rounded.isfinite().all()):
        raise ConfigError(
            f"{name} holds {float(value.abs().max()):.4g}, too large for --dtype {dtype}; use bfloat16 or float32"
        )
    return rounded


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
