"""Types of configuration values that are written otherwise than they are held: token counts, splits, lists of layers.

In: what TOML or the command line gave. Out: the value, or ValueError with what to write instead.
"""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

# what each of them is: kernels/attention_names.py
AttentionBackend = Literal[
    "auto",
    "native",
    "sdpa",
    "sdpa_flash",
    "sdpa_cudnn",
    "sdpa_efficient",
    "varlen",
    "flex",
    "flash_attn",
    "transformer_engine",
    "triton",
]

_TOKEN_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_tokens(value: Any) -> Any:
    """A number of tokens from 375000000, "375M", "0.5B" or "300k" (decimal units). Raises ValueError with the fix."""
    if isinstance(value, bool):
        raise ValueError('is not a number of tokens; write a whole number or one with a unit, such as 65536 or "375M"')
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kMBT]?)\s*", value)
    if match is None:
        raise ValueError(
            "is not a number of tokens; write a whole number or one with a unit k, M, B or T (10^3 … 10^12), "
            'such as "375M"'
        )
    amount = Decimal(match[1].replace("_", "")) * _TOKEN_UNITS[match[2]]
    if amount != int(amount):
        raise ValueError("is not a whole number of tokens")
    return int(amount)


def parse_split(value: Any) -> Any:
    """Three shares of 0 to 1 as a tuple of floats. Raises ValueError with the fix."""
    wanted = "must be three numbers from 0 to 1 for training, validation and test, such as [0.98, 0.01, 0.01]"
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError(wanted)
    if any(isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1 for share in value):
        raise ValueError(wanted)
    return tuple(float(share) for share in value)


def parse_stage_layers(value: Any) -> Any:
    """Whole numbers of layers as a tuple, from a list. Raises ValueError with the fix."""
    wanted = "must be a list with the number of layers, 1 or more, of each model chunk, such as [3, 4, 4, 3]"
    if value is None:
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(wanted)
    if any(isinstance(layers, bool) or not isinstance(layers, (int, float)) or layers < 1 for layers in value):
        raise ValueError(wanted)
    if any(layers != int(layers) for layers in value):  # the command line reads every list as floats
        raise ValueError(wanted)
    return tuple(int(layers) for layers in value)


Tokens = Annotated[int, BeforeValidator(parse_tokens)]
Split = Annotated[tuple[float, float, float], BeforeValidator(parse_split)]
StageLayers = Annotated[tuple[int, ...] | None, BeforeValidator(parse_stage_layers)]
