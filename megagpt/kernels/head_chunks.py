"""How many tokens at a time the output head works on: numbers only, so that the plan's memory estimate has them too.

Few chunks are fast: each reads and writes the sum of the token table's gradient once. Many chunks are small. On a GPU
both numbers below are unmeasured (benchmarks/gpu_head.py prints time and memory by number of chunks).
"""

from typing import NamedTuple

# bytes of one chunk's logits, at most
_CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 512 << 20}
_LEAST_CHUNKS = 2
_TILE_TOKENS = 128  # rows of a GEMM's tile: a chunk is a multiple of it
# bf16: the table's gradient is rounded once a chunk while it is summed in its own format; of more chunks, in float32
_MOST_NARROW_CHUNKS = 4


class HeadChunks(NamedTuple):
    """The tokens of one forward pass of the head, cut."""

    tokens: int  # of a chunk; the last may have fewer
    num_chunks: int
    wide_sum: bool  # the token table's gradient is summed in float32, whatever its own format


def head_chunks(num_tokens: int, width: int, dtype: str, device_type: str) -> HeadChunks:
    """The chunks of `num_tokens` tokens with `width` logits each. `dtype`: of logits, in torch's name of it.

    fp16 always sums in float32: gradients are scaled up there until they are divided by the loss scale's own factor.
    """
    value_bytes = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
    num_chunks = max(_LEAST_CHUNKS, _ceil_divide(num_tokens * width * value_bytes, _CHUNK_BYTES[device_type]))
    tokens = _ceil_divide(_ceil_divide(num_tokens, num_chunks), _TILE_TOKENS) * _TILE_TOKENS
    tokens = max(1, min(tokens, num_tokens))
    num_chunks = _ceil_divide(num_tokens, tokens)
    wide = dtype == "float16" or (dtype == "bfloat16" and num_chunks > _MOST_NARROW_CHUNKS)
    return HeadChunks(tokens, num_chunks, wide)


def _ceil_divide(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
