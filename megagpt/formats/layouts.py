"""How other software names and lays out the parameters of our model. In: ours, one at a time. Out: theirs, and back.

Legend: H hidden, F feed-forward, N heads, D head dim. Pure: knows no files and no tokenizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from megagpt.model.names import POSITION_EMBEDDING, TOKEN_EMBEDDING, parameter_shapes
from megagpt.model.spec import ModelSpec


@dataclass(frozen=True)
class Layout:
    """One software's names, the order of its query, key and value rows, and how its linears lie.

    Ours: rows ordered [head][q|k|v][head_dim], linears [out, in]. The output head is tied and has no tensor of its own.
    """

    tokens: str
    positions: str
    final_norm: str  # without ".weight" and ".bias", as are the next two
    layers: str  # with {} for the number
    parts: Mapping[str, str]  # of a layer: our module's name to theirs
    qkv_by_kind: bool  # rows ordered Q | K | V
    linears_transposed: bool  # [in, out]

    def name_of(self, name: str) -> str:
        """Their name of our parameter."""
        if name == TOKEN_EMBEDDING:
            return self.tokens
        if name == POSITION_EMBEDDING:
            return self.positions
        module, _, kind = name.rpartition(".")
        if module == "final_norm":
            return f"{self.final_norm}.{kind}"
        _, number, part = module.split(".", 2)
        return f"{self.layers.format(number)}.{self.parts[part]}.{kind}"

    def shape_of(self, name: str, spec: ModelSpec) -> tuple[int, ...]:
        """The shape of the whole parameter with them; the token table with our padded rows."""
        shape = parameter_shapes(spec)[name].shape
        return shape[::-1] if self._is_transposed(name, len(shape)) else shape

    def convert(self, name: str, value: Tensor, spec: ModelSpec) -> Tensor:
        """Our whole parameter, or a tensor rank's part of it, as theirs; a view where that is possible."""
        if self.qkv_by_kind and ".attention.qkv." in name:  # [head][q|k|v][D] to Q | K | V; [3H, H] or [3H]
            value = value.unflatten(0, (-1, 3, spec.head_dim)).transpose(0, 1).flatten(0, 2)
        return value.T if self._is_transposed(name, value.ndim) else value

    def restore(self, name: str, value: Tensor, spec: ModelSpec) -> Tensor:
        """Theirs as our parameter; a view where that is possible."""
        if self._is_transposed(name, value.ndim):
            value = value.T
        if self.qkv_by_kind and ".attention.qkv." in name:
            value = value.unflatten(0, (3, -1, spec.head_dim)).transpose(0, 1).flatten(0, 2)
        return value

    def _is_transposed(self, name: str, num_dims: int) -> bool:
        return self.linears_transposed and num_dims == 2 and not name.startswith("embedding.")


HUGGINGFACE = Layout(
    tokens="transformer.wte.weight",
    positions="transformer.wpe.weight",
    final_norm="transformer.ln_f",
    layers="transformer.h.{}",
    parts=MappingProxyType(
        {
            "attention_norm": "ln_1",
            "attention.qkv": "attn.c_attn",
            "attention.output": "attn.c_proj",
            "mlp_norm": "ln_2",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }
    ),
    qkv_by_kind=True,
    linears_transposed=True,  # GPT-2's Conv1D
)
