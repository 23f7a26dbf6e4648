"""Triton kernels of causal attention: what both passes share, and the forward pass. FlashAttention-2 (Dao 2023).

A program has a tile of queries and goes over the tiles of keys that any of them sees: earlier documents of a packed
sequence, and later positions, are skipped. Only tiles at the edges are masked. Scores never reach memory: the forward
pass leaves the base-2 logarithm of each query's softmax sum, from which the backward pass makes them again.

Legend: M queries and N keys of a tile. A head is cut into WIDTH columns, a power of two, and REST more, 0 or a power of
two of at least 16: 80 = 64 + 16, so that no product is of padding. `starts` and `ends` [B, S]: first position of the
document of each token, and the one after its last; they rise along the sequence. Imported only where Triton is used.
"""

import triton
import triton.language as tl


@triton.jit
def load_rows(  # type: ignore[no-untyped-def]
    base, first, row_stride, length,
    COLUMN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLUMNS] from row `first` and column COLUMN on; zero past the sequence and past the head."""
    rows = first + tl.arange(0, ROWS)
    columns = COLUMN + tl.arange(0, COLUMNS)
    places = base + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
    if EVEN and COLUMN + COLUMNS <= HEAD_DIM:
        tile = tl.load(places)
    else:
        tile = tl.load(places, mask=(rows[:, None] < length) & (columns[None, :] < HEAD_DIM), other=0.0)
    return tile


@triton.jit
def store_rows(  # type: ignore[no-untyped-def]
    base, tile, first, row_stride, length,
    COLUMN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """The reverse of `load_rows`, in the format of the memory."""
    rows = first + tl.arange(0, ROWS)
    columns = COLUMN + tl.arange(0, COLUMNS)
    places = base + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
    inside = (rows[:, None] < length) & (columns[None, :] < HEAD_DIM)
    tl.store(places, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def seen(queries, keys, starts, length, DOCUMENTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which keys each query sees; `queries` and `keys` are positions that broadcast, `starts` is of this sequence."""
    visible = keys <= queries
    if DOCUMENTS:
        visible = visible & (keys >= tl.load(starts + queries, mask=queries < length, other=0))
    return visible


@triton.jit
def kept(queries, keys, plane, seed, probability):  # type: ignore[no-untyped-def]
    """Which probabilities dropout keeps: a function of seed, head of the batch, query and key alone.

    Philox (Salmon et al. 2011) with the 7 rounds that its authors found to pass BigCrush.
    """
    zero = queries * 0 + keys * 0
    bits, _, _, _ = tl.philox(seed, zero + keys, zero + queries, zero + plane, zero, 7)
    return tl.uint_to_uniform_float(bits) >= probability


@triton.jit
def _forward_tiles(  # type: ignore[no-untyped-def]
    total, largest, sums, rest_sums, query, rest_query, key, value, key_stride, value_stride, first_query, begin, end,
    starts, length, scale, plane, seed, probability, rescale,
    WIDTH: tl.constexpr, REST: tl.constexpr, HEAD_DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    EVEN: tl.constexpr, MASKED: tl.constexpr, DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds keys `begin` … `end` - 1, whole tiles, to a tile's softmax: its sums, largest scores and weighted values."""
    queries = first_query + tl.arange(0, M)[:, None]
    for first in range(begin, end, N):
        keys = first + tl.arange(0, N)[None, :]
        tile = load_rows(key, first, key_stride, length, 0, N, WIDTH, HEAD_DIM, EVEN)
        scores = tl.dot(query, tl.trans(tile), input_precision=PRECISION)
        if REST > 0:
            tile = load_rows(key, first, key_stride, length, WIDTH, N, REST, HEAD_DIM, EVEN)
            scores = tl.dot(rest_query, tl.trans(tile), scores, input_precision=PRECISION)
        scores = scores * scale
        if MASKED:
            scores = tl.where(seen(queries, keys, starts, length, DOCUMENTS), scores, float("-inf"))
        risen = tl.maximum(largest, tl.max(scores, 1))
        # a query that has seen no key yet: its document begins in a later tile
        base = tl.where(risen == float("-inf"), 0.0, risen) if MASKED and DOCUMENTS else risen
        shares = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(shares, 1)
        if DROPOUT:
            shares = tl.where(kept(queries, keys, plane, seed, probability), shares * rescale, 0.0)
        tile = load_rows(value, first, value_stride, length, 0, N, WIDTH, HEAD_DIM, EVEN)
        shares = shares.to(tile.dtype)
        sums = tl.dot(shares, tile, sums * shrink[:, None], input_precision=PRECISION)
        if REST > 0:
            tile = load_rows(value, first, value_stride, length, WIDTH, N, REST, HEAD_DIM, EVEN)
            rest_sums = tl.dot(shares, tile, rest_sums * shrink[:, None], input_precision=PRECISION)
        largest = risen
    return total, largest, sums, rest_sums


@triton.jit(do_not_specialize=["seed"])
def forward_kernel(  # type: ignore[no-untyped-def]
    query, key, value, output, log_sums, starts,
    query_b, query_n, query_s, key_b, key_n, key_s, value_b, value_n, value_s, output_b, output_n, output_s,
    num_heads, length, scale, seed, probability, rescale,
    WIDTH: tl.constexpr, REST: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, EVEN: tl.constexpr,
    DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output [B, N, S, D] and log_sums [B, N, S] of a tile of M queries of one head.

    `_b _n _s` are strides of batch, head and position; columns lie together. GROUP query heads share a key head.
    `scale` is for base-2 exponents. Grid: (tiles of queries, B * num_heads); the longest tiles go first.
    """
    first_query = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    plane = tl.program_id(1)
    batch = (plane // num_heads).to(tl.int64)
    head = (plane % num_heads).to(tl.int64)
    query += batch * query_b + head * query_n
    output += batch * output_b + head * output_n
    key += batch * key_b + head // GROUP * key_n
    value += batch * value_b + head // GROUP * value_n
    starts += batch * length
    tile = load_rows(query, first_query, query_s, length, 0, M, WIDTH, HEAD_DIM, EVEN)
    rest = tile
    sums = tl.zeros([M, WIDTH], tl.float32)
    rest_sums = tl.zeros([M, 16], tl.float32)
    if REST > 0:
        rest = load_rows(query, first_query, query_s, length, WIDTH, M, REST, HEAD_DIM, EVEN)
        rest_sums = tl.zeros([M, REST], tl.float32)
    total = tl.zeros([M], tl.float32)
    largest = tl.full([M], float("-inf"), tl.float32)

    # keys [first_full, last_full) are seen by every query of the tile
    end = tl.minimum(first_query + M, length)
    first_full = 0
    last_full = (first_query + 1) // N * N
    if DOCUMENTS:
        begin = tl.load(starts + first_query) // N * N
        first_full = tl.cdiv(tl.load(starts + end - 1), N) * N
        last_full = tl.maximum(first_full, last_full)
        total, largest, sums, rest_sums = _forward_tiles(
            total, largest, sums, rest_sums, tile, rest, key, value, key_s, value_s, first_query, begin, first_full,
            starts, length, scale, plane, seed, probability, rescale,
            WIDTH, REST, HEAD_DIM, M, N, EVEN, True, DOCUMENTS, DROPOUT, PRECISION,
        )  # fmt: skip
    total, largest, sums, rest_sums = _forward_tiles(
        total, largest, sums, rest_sums, tile, rest, key, value, key_s, value_s, first_query, first_full, last_full,
        starts, length, scale, plane, seed, probability, rescale,
        WIDTH, REST, HEAD_DIM, M, N, EVEN, False, DOCUMENTS, DROPOUT, PRECISION,
    )  # fmt: skip
    total, largest, sums, rest_sums = _forward_tiles(
        total, largest, sums, rest_sums, tile, rest, key, value, key_s, value_s, first_query, last_full, end,
        starts, length, scale, plane, seed, probability, rescale,
        WIDTH, REST, HEAD_DIM, M, N, EVEN, True, DOCUMENTS, DROPOUT, PRECISION,
    )  # fmt: skip

    store_rows(output, sums / total[:, None], first_query, output_s, length, 0, M, WIDTH, HEAD_DIM)
    if REST > 0:
        store_rows(output, rest_sums / total[:, None], first_query, output_s, length, WIDTH, M, REST, HEAD_DIM)
    rows = first_query + tl.arange(0, M)
    tl.store(log_sums + plane.to(tl.int64) * length + rows, largest + tl.log2(total), mask=rows < length)
