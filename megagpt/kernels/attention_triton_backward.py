"""Triton kernels of the backward pass of causal attention; legend and layout as in `attention_triton.py`.

Three kernels, none of which adds to memory that another program writes, so gradients are the same bits every time:
`delta_kernel` (Σ over a head of output times its gradient), `key_value_kernel` (a tile of keys over all queries that
see it) and `query_kernel` (a tile of queries over all keys that it sees). FlashAttention-2 (Dao 2023), §3.1.2.
"""

import triton
import triton.language as tl

from megagpt.kernels.attention_triton import kept, load_rows, seen, store_rows


@triton.jit
def delta_kernel(  # type: ignore[no-untyped-def]
    output, upstream, deltas, output_b, output_n, output_s, upstream_b, upstream_n, upstream_s, num_heads, length,
    COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr, M: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """deltas [B, N, S] fp32. Grid: (tiles of queries, B * num_heads)."""
    first, plane = tl.program_id(0) * M, tl.program_id(1)
    batch = (plane // num_heads).to(tl.int64)
    head = (plane % num_heads).to(tl.int64)
    output += batch * output_b + head * output_n
    upstream += batch * upstream_b + head * upstream_n
    one = load_rows(output, first, output_s, length, 0, M, COLUMNS, HEAD_DIM, EVEN).to(tl.float32)
    other = load_rows(upstream, first, upstream_s, length, 0, M, COLUMNS, HEAD_DIM, EVEN).to(tl.float32)
    rows = first + tl.arange(0, M)
    tl.store(deltas + plane.to(tl.int64) * length + rows, tl.sum(one * other, 1), mask=rows < length)


@triton.jit
def _key_value_tiles(  # type: ignore[no-untyped-def]
    key_sums, rest_key_sums, value_sums, rest_value_sums, key, rest_key, value, rest_value, query, upstream,
    query_stride, upstream_stride, log_sums, deltas, first_key, begin, end, starts, length, scale, plane, seed,
    probability, rescale,
    WIDTH: tl.constexpr, REST: tl.constexpr, HEAD_DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    EVEN: tl.constexpr, MASKED: tl.constexpr, DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds queries `begin` … `end` - 1, whole tiles, to the gradients of a tile of keys and values.

    Scores stand transposed, [N, M]. Queries past the sequence are zero, and so is what they add.
    """
    keys = first_key + tl.arange(0, N)[:, None]
    for first in range(begin, end, M):
        rows = first + tl.arange(0, M)
        queries = rows[None, :]
        tile = load_rows(query, first, query_stride, length, 0, M, WIDTH, HEAD_DIM, EVEN)
        scores = tl.dot(key, tl.trans(tile), input_precision=PRECISION)
        rest = tile
        if REST > 0:
            rest = load_rows(query, first, query_stride, length, WIDTH, M, REST, HEAD_DIM, EVEN)
            scores = tl.dot(rest_key, tl.trans(rest), scores, input_precision=PRECISION)
        shares = tl.exp2(scores * scale - tl.load(log_sums + rows, mask=rows < length, other=0.0)[None, :])
        if MASKED:
            shares = tl.where(seen(queries, keys, starts, length, DOCUMENTS), shares, 0.0)
        weights = shares
        if DROPOUT:
            keep = kept(queries, keys, plane, seed, probability)
            weights = tl.where(keep, shares * rescale, 0.0)
        slope = load_rows(upstream, first, upstream_stride, length, 0, M, WIDTH, HEAD_DIM, EVEN)
        weights = weights.to(slope.dtype)
        value_sums = tl.dot(weights, slope, value_sums, input_precision=PRECISION)
        changes = tl.dot(value, tl.trans(slope), input_precision=PRECISION)
        if REST > 0:
            slope = load_rows(upstream, first, upstream_stride, length, WIDTH, M, REST, HEAD_DIM, EVEN)
            rest_value_sums = tl.dot(weights, slope, rest_value_sums, input_precision=PRECISION)
            changes = tl.dot(rest_value, tl.trans(slope), changes, input_precision=PRECISION)
        if DROPOUT:
            changes = tl.where(keep, changes * rescale, 0.0)
        changes = shares * (changes - tl.load(deltas + rows, mask=rows < length, other=0.0)[None, :])
        changes = changes.to(tile.dtype)
        key_sums = tl.dot(changes, tile, key_sums, input_precision=PRECISION)
        if REST > 0:
            rest_key_sums = tl.dot(changes, rest, rest_key_sums, input_precision=PRECISION)
    return key_sums, rest_key_sums, value_sums, rest_value_sums


@triton.jit(do_not_specialize=["seed"])
def key_value_kernel(  # type: ignore[no-untyped-def]
    query, key, value, upstream, log_sums, deltas, starts, ends, key_grad, value_grad,
    query_b, query_n, query_s, key_b, key_n, key_s, value_b, value_n, value_s, upstream_b, upstream_n, upstream_s,
    key_grad_b, key_grad_n, key_grad_s, value_grad_b, value_grad_n, value_grad_s,
    num_heads, length, scale, softmax_scale, seed, probability, rescale,
    WIDTH: tl.constexpr, REST: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, EVEN: tl.constexpr,
    DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of N keys and values of one key head, over the GROUP query heads that share it.

    Grid: (tiles of keys, B * num_heads / GROUP); the first keys, which most queries see, go first.
    """
    first_key, key_plane = tl.program_id(0) * N, tl.program_id(1)
    num_key_heads = num_heads // GROUP
    batch = (key_plane // num_key_heads).to(tl.int64)
    key_head = (key_plane % num_key_heads).to(tl.int64)
    key += batch * key_b + key_head * key_n
    value += batch * value_b + key_head * value_n
    starts += batch * length
    ends += batch * length
    tile = load_rows(key, first_key, key_s, length, 0, N, WIDTH, HEAD_DIM, EVEN)
    value_tile = load_rows(value, first_key, value_s, length, 0, N, WIDTH, HEAD_DIM, EVEN)
    rest, rest_value = tile, value_tile
    key_sums, value_sums = tl.zeros([N, WIDTH], tl.float32), tl.zeros([N, WIDTH], tl.float32)
    rest_key_sums, rest_value_sums = tl.zeros([N, 16], tl.float32), tl.zeros([N, 16], tl.float32)
    if REST > 0:
        rest = load_rows(key, first_key, key_s, length, WIDTH, N, REST, HEAD_DIM, EVEN)
        rest_value = load_rows(value, first_key, value_s, length, WIDTH, N, REST, HEAD_DIM, EVEN)
        rest_key_sums, rest_value_sums = tl.zeros([N, REST], tl.float32), tl.zeros([N, REST], tl.float32)

    # queries [first_full, last_full) see every key of the tile
    begin = first_key // M * M
    end = length
    last_full = tl.cdiv(length, M) * M
    if DOCUMENTS:
        end = tl.load(ends + tl.minimum(first_key + N, length) - 1)
        last_full = tl.load(ends + first_key) // M * M
    first_full = tl.minimum(tl.cdiv(first_key + N - 1, M), tl.cdiv(end, M)) * M
    last_full = tl.maximum(first_full, last_full)
    for member in range(GROUP):
        head = key_head * GROUP + member
        plane = (batch * num_heads + head).to(tl.int32)
        queries = query + batch * query_b + head * query_n
        slopes = upstream + batch * upstream_b + head * upstream_n
        logs = log_sums + plane.to(tl.int64) * length
        dots = deltas + plane.to(tl.int64) * length
        key_sums, rest_key_sums, value_sums, rest_value_sums = _key_value_tiles(
            key_sums, rest_key_sums, value_sums, rest_value_sums, tile, rest, value_tile, rest_value, queries, slopes,
            query_s, upstream_s, logs, dots, first_key, begin, first_full, starts, length, scale, plane, seed,
            probability, rescale,
            WIDTH, REST, HEAD_DIM, M, N, EVEN, True, DOCUMENTS, DROPOUT, PRECISION,
        )  # fmt: skip
        key_sums, rest_key_sums, value_sums, rest_value_sums = _key_value_tiles(
            key_sums, rest_key_sums, value_sums, rest_value_sums, tile, rest, value_tile, rest_value, queries, slopes,
            query_s, upstream_s, logs, dots, first_key, first_full, last_full, starts, length, scale, plane, seed,
            probability, rescale,
            WIDTH, REST, HEAD_DIM, M, N, EVEN, False, DOCUMENTS, DROPOUT, PRECISION,
        )  # fmt: skip
        if DOCUMENTS:
            key_sums, rest_key_sums, value_sums, rest_value_sums = _key_value_tiles(
                key_sums, rest_key_sums, value_sums, rest_value_sums, tile, rest, value_tile, rest_value, queries,
                slopes, query_s, upstream_s, logs, dots, first_key, last_full, end, starts, length, scale, plane, seed,
                probability, rescale,
                WIDTH, REST, HEAD_DIM, M, N, EVEN, True, DOCUMENTS, DROPOUT, PRECISION,
            )  # fmt: skip

    key_grad += batch * key_grad_b + key_head * key_grad_n
    value_grad += batch * value_grad_b + key_head * value_grad_n
    store_rows(key_grad, key_sums * softmax_scale, first_key, key_grad_s, length, 0, N, WIDTH, HEAD_DIM)
    store_rows(value_grad, value_sums, first_key, value_grad_s, length, 0, N, WIDTH, HEAD_DIM)
    if REST > 0:
        store_rows(key_grad, rest_key_sums * softmax_scale, first_key, key_grad_s, length, WIDTH, N, REST, HEAD_DIM)
        store_rows(value_grad, rest_value_sums, first_key, value_grad_s, length, WIDTH, N, REST, HEAD_DIM)


@triton.jit
def _query_tiles(  # type: ignore[no-untyped-def]
    sums, rest_sums, query, rest_query, upstream, rest_upstream, logs, dots, key, value, key_stride, value_stride,
    first_query, begin, end, starts, length, scale, plane, seed, probability, rescale,
    WIDTH: tl.constexpr, REST: tl.constexpr, HEAD_DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    EVEN: tl.constexpr, MASKED: tl.constexpr, DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds keys `begin` … `end` - 1, whole tiles, to the gradient of a tile of queries."""
    queries = first_query + tl.arange(0, M)[:, None]
    for first in range(begin, end, N):
        keys = first + tl.arange(0, N)[None, :]
        tile = load_rows(key, first, key_stride, length, 0, N, WIDTH, HEAD_DIM, EVEN)
        values = load_rows(value, first, value_stride, length, 0, N, WIDTH, HEAD_DIM, EVEN)
        scores = tl.dot(query, tl.trans(tile), input_precision=PRECISION)
        changes = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        rest = tile
        if REST > 0:
            rest = load_rows(key, first, key_stride, length, WIDTH, N, REST, HEAD_DIM, EVEN)
            values = load_rows(value, first, value_stride, length, WIDTH, N, REST, HEAD_DIM, EVEN)
            scores = tl.dot(rest_query, tl.trans(rest), scores, input_precision=PRECISION)
            changes = tl.dot(rest_upstream, tl.trans(values), changes, input_precision=PRECISION)
        shares = tl.exp2(scores * scale - logs[:, None])
        if MASKED:
            shares = tl.where(seen(queries, keys, starts, length, DOCUMENTS), shares, 0.0)
        if DROPOUT:
            changes = tl.where(kept(queries, keys, plane, seed, probability), changes * rescale, 0.0)
        changes = (shares * (changes - dots[:, None])).to(tile.dtype)
        sums = tl.dot(changes, tile, sums, input_precision=PRECISION)
        if REST > 0:
            rest_sums = tl.dot(changes, rest, rest_sums, input_precision=PRECISION)
    return sums, rest_sums


@triton.jit(do_not_specialize=["seed"])
def query_kernel(  # type: ignore[no-untyped-def]
    query, key, value, upstream, log_sums, deltas, starts, query_grad,
    query_b, query_n, query_s, key_b, key_n, key_s, value_b, value_n, value_s, upstream_b, upstream_n, upstream_s,
    query_grad_b, query_grad_n, query_grad_s,
    num_heads, length, scale, softmax_scale, seed, probability, rescale,
    WIDTH: tl.constexpr, REST: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, EVEN: tl.constexpr,
    DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of M queries of one head. Grid and order as in `forward_kernel`."""
    first_query = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    plane = tl.program_id(1)
    batch = (plane // num_heads).to(tl.int64)
    head = (plane % num_heads).to(tl.int64)
    query += batch * query_b + head * query_n
    upstream += batch * upstream_b + head * upstream_n
    key += batch * key_b + head // GROUP * key_n
    value += batch * value_b + head // GROUP * value_n
    starts += batch * length
    rows = first_query + tl.arange(0, M)
    logs = tl.load(log_sums + plane.to(tl.int64) * length + rows, mask=rows < length, other=0.0)
    dots = tl.load(deltas + plane.to(tl.int64) * length + rows, mask=rows < length, other=0.0)
    tile = load_rows(query, first_query, query_s, length, 0, M, WIDTH, HEAD_DIM, EVEN)
    slope = load_rows(upstream, first_query, upstream_s, length, 0, M, WIDTH, HEAD_DIM, EVEN)
    rest, rest_slope = tile, slope
    sums, rest_sums = tl.zeros([M, WIDTH], tl.float32), tl.zeros([M, 16], tl.float32)
    if REST > 0:
        rest = load_rows(query, first_query, query_s, length, WIDTH, M, REST, HEAD_DIM, EVEN)
        rest_slope = load_rows(upstream, first_query, upstream_s, length, WIDTH, M, REST, HEAD_DIM, EVEN)
        rest_sums = tl.zeros([M, REST], tl.float32)

    end = tl.minimum(first_query + M, length)
    first_full = 0
    last_full = (first_query + 1) // N * N
    if DOCUMENTS:
        begin = tl.load(starts + first_query) // N * N
        first_full = tl.cdiv(tl.load(starts + end - 1), N) * N
        last_full = tl.maximum(first_full, last_full)
        sums, rest_sums = _query_tiles(
            sums, rest_sums, tile, rest, slope, rest_slope, logs, dots, key, value, key_s, value_s,
            first_query, begin, first_full, starts, length, scale, plane, seed, probability, rescale,
            WIDTH, REST, HEAD_DIM, M, N, EVEN, True, DOCUMENTS, DROPOUT, PRECISION,
        )  # fmt: skip
    sums, rest_sums = _query_tiles(
        sums, rest_sums, tile, rest, slope, rest_slope, logs, dots, key, value, key_s, value_s,
        first_query, first_full, last_full, starts, length, scale, plane, seed, probability, rescale,
        WIDTH, REST, HEAD_DIM, M, N, EVEN, False, DOCUMENTS, DROPOUT, PRECISION,
    )  # fmt: skip
    sums, rest_sums = _query_tiles(
        sums, rest_sums, tile, rest, slope, rest_slope, logs, dots, key, value, key_s, value_s,
        first_query, last_full, end, starts, length, scale, plane, seed, probability, rescale,
        WIDTH, REST, HEAD_DIM, M, N, EVEN, True, DOCUMENTS, DROPOUT, PRECISION,
    )  # fmt: skip

    query_grad += batch * query_grad_b + head * query_grad_n
    store_rows(query_grad, sums * softmax_scale, first_query, query_grad_s, length, 0, M, WIDTH, HEAD_DIM)
    if REST > 0:
        store_rows(query_grad, rest_sums * softmax_scale, first_query, query_grad_s, length, WIDTH, M, REST, HEAD_DIM)
