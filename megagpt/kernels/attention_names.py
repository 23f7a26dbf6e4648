"""The ways of attending by name, and what each can do: plain values, so that a plan is checked without torch."""

from typing import NamedTuple


class Ability(NamedTuple):
    """What a way of attending can do."""

    fp32: bool
    dropout: bool
    documents: bool
    meaning: str


ABILITIES: dict[str, Ability] = {
    "native": Ability(True, False, True, "our kernel for CPUs with AVX-512 and bfloat16"),
    "sdpa": Ability(True, True, True, "torch's scaled_dot_product_attention, in the form it chooses"),
    "sdpa_flash": Ability(False, True, False, "its FlashAttention-2"),
    "sdpa_cudnn": Ability(False, True, False, "its cuDNN attention"),
    "sdpa_efficient": Ability(True, True, True, "its memory-efficient attention"),
    "varlen": Ability(False, False, True, "torch's varlen_attn, from 2.10"),
    "flex": Ability(True, False, True, "torch's flex_attention, compiled"),
    "flash_attn": Ability(False, True, True, "the flash-attn package"),
    "transformer_engine": Ability(False, False, True, "Transformer Engine's DotProductAttention"),
    "triton": Ability(True, True, True, "our Triton kernels"),
}


def abilities(fp32: bool, dropout: bool, documents: bool) -> list[str]:
    """Names of those that can do all that is asked for."""
    return [
        name
        for name, ability in ABILITIES.items()
        if ability.fp32 >= fp32 and ability.dropout >= dropout and ability.documents >= documents
    ]
