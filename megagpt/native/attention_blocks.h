// Causal attention of one head on AVX-512, forward and backward, a block of 64 queries and 64 keys at a time, so that
// scores stay in the processor's cache. Dao et al. 2022 (FlashAttention), with scores kept as [key][query]: maxima and
// sums over keys are then sums of whole vectors, and no block has to be turned between two products.
//
// Queries of packed documents see keys from `starts[query]` on; blocks that nobody sees are not computed. Probabilities
// are powers of two: log_sums are base-2 logarithms of the sums of 2^(score * scale * log2 e).
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "simd_blocks.h"

#if MEGAGPT_SIMD
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#endif

namespace megagpt {

constexpr i64 kBlock = 64;  // queries, and keys
constexpr i64 kVectors = kBlock / 16;

// One head's rows: `rows` numbers of which each row is `stride` after the one before.
template <typename Number>
struct Rows {
    Number* data;
    i64 stride;
    Number* at(i64 row) const { return data + row * stride; }
    word* words(i64 row) const { return reinterpret_cast<word*>(const_cast<std::remove_const_t<Number>*>(at(row))); }
};

struct Shape {
    i64 length;  // queries and keys; 64 divides it
    i64 width;   // of a head; 16 divides it
    float scale;
    const std::int32_t* starts;  // first key of each query, or null: all from 0 on
    i64 first_block(i64 block) const {
        if (starts == nullptr) return 0;
        std::int32_t least = starts[block * kBlock];
        for (i64 q = 1; q < kBlock; ++q) least = least < starts[block * kBlock + q] ? least : starts[block * kBlock + q];
        return least / kBlock;
    }
    i64 last_start(i64 block) const {
        std::int32_t most = 0;
        for (i64 q = 0; starts != nullptr && q < kBlock; ++q)
            most = most > starts[block * kBlock + q] ? most : starts[block * kBlock + q];
        return most;
    }
};

// Which of a block's queries (16 from vector v on) see a key.
struct Visibility {
    const Shape& shape;
    i64 queries, keys;  // block numbers
    bool diagonal, bounded;
    Visibility(const Shape& shape, i64 queries, i64 keys, i64 last_start)
        : shape(shape), queries(queries), keys(keys), diagonal(queries == keys), bounded(last_start > keys * kBlock) {}
    bool all() const { return !diagonal && !bounded; }
    __mmask16 of(i64 key, i64 v) const {
        __mmask16 mask = 0xffff;
        if (diagonal) {
            const i64 hidden = key - 16 * v;
            mask = hidden <= 0 ? 0xffff : hidden >= 16 ? 0 : static_cast<__mmask16>(0xffff << hidden);
        }
        if (bounded) {
            const __m512i starts = _mm512_loadu_si512(shape.starts + queries * kBlock + 16 * v);
            mask &= _mm512_cmple_epi32_mask(starts, _mm512_set1_epi32(static_cast<int>(keys * kBlock + key)));
        }
        return mask;
    }
};

// A block [64 keys][64 queries] of float32 as B wants it; float32 is so already.
inline const word* packed_block(Float32, float* block, word*) { return reinterpret_cast<word*>(block); }
inline const word* packed_block(BFloat16, float* block, word* to) {
    for (i64 key = 0; key < kBlock; key += 2)
        for (i64 v = 0; v < kBlock; v += 16) {
            const float* lower = block + key * kBlock + v;
            const __m512i words = pair(BFloat16::round(_mm512_loadu_ps(lower)), BFloat16::round(_mm512_loadu_ps(lower + kBlock)));
            _mm512_storeu_si512(to + key / 2 * kBlock + v, words);
        }
    return to;
}

// The same block as A wants it: rows of numbers.
inline const word* row_block(Float32, float* block, word*) { return reinterpret_cast<word*>(block); }
inline const word* row_block(BFloat16, float* block, word* to) {
    for (i64 at = 0; at < kBlock * kBlock; at += 16)
        BFloat16::store(reinterpret_cast<half*>(to) + at, _mm512_loadu_ps(block + at));
    return to;
}

// What a thread works in; made once for all of its heads.
template <typename Format>
struct Scratch {
    static constexpr i64 per = Format::per_word;
    std::vector<std::uint32_t> turned;                  // [width][length / per]: all keys, or values, turned
    std::vector<std::uint32_t> rows;                    // [length / per][width]
    std::vector<std::uint32_t> queries, grads;          // [width / per][64]
    std::vector<std::uint32_t> query_rows, grad_rows;   // [64 / per][width]
    std::vector<float> sum;                    // [width][64]
    std::vector<float> flat;                   // [64][width]
    std::vector<float> scores, slopes;         // [64 keys][64 queries]
    std::vector<std::uint32_t> left, right;             // the same in the forms of A and B
    std::vector<float> key_grads, value_grads; // [length][width]
    explicit Scratch(const Shape& shape, bool backward)
        : turned(shape.width * shape.length / per), rows(shape.length * shape.width / per),
          queries(shape.width / per * kBlock), sum(shape.width * kBlock), flat(shape.width * kBlock),
          scores(kBlock * kBlock), right(kBlock * kBlock) {
        if (!backward) return;
        grads.resize(shape.width / per * kBlock);
        query_rows.resize(kBlock / per * shape.width);
        grad_rows.resize(kBlock / per * shape.width);
        slopes.resize(kBlock * kBlock);
        left.resize(kBlock * kBlock);
        key_grads.resize(shape.length * shape.width);
        value_grads.resize(shape.length * shape.width);
    }
};

// All rows of a head [length][width], turned: [width][length / per_word].
template <typename Format>
void turn_rows(const Shape& shape, const Rows<const typename Format::Number>& from, Scratch<Format>& scratch) {
    constexpr i64 per = Format::per_word;
    pack_rows(Format{}, from.data, from.stride, shape.length, shape.width, scratch.rows.data());
    const i64 count = shape.length / per;  // 16 divides it
    transpose(scratch.rows.data(), shape.width, count, shape.width, scratch.turned.data(), count);
}

// sum [width][64] as 64 rows of numbers.
template <typename Format>
void store_turned(const Shape& shape, Scratch<Format>& scratch, const Rows<typename Format::Number>& to, i64 first) {
    transpose(reinterpret_cast<word*>(scratch.sum.data()), kBlock, shape.width, kBlock,
              reinterpret_cast<word*>(scratch.flat.data()), shape.width);
    for (i64 q = 0; q < kBlock; ++q)
        for (i64 d = 0; d < shape.width; d += 16)
            Format::store(to.at(first + q) + d, _mm512_loadu_ps(scratch.flat.data() + q * shape.width + d));
}

// Rows of float32 [length][width] as rows of numbers.
template <typename Format>
void store_all(const Shape& shape, const float* from, const Rows<typename Format::Number>& to) {
    for (i64 row = 0; row < shape.length; ++row)
        for (i64 d = 0; d < shape.width; d += 16)
            Format::store(to.at(row) + d, _mm512_loadu_ps(from + row * shape.width + d));
}

// Scores of a block into probabilities relative to the largest so far; returns by `shrink` what earlier sums lose.
inline void soften(const Visibility& sees, float factor, float* scores, __m512* largest, __m512* total, __m512* shrink) {
    const __m512 nothing = _mm512_set1_ps(-1e30f);
    const __m512 times = _mm512_set1_ps(factor);
    for (i64 v = 0; v < kVectors; ++v) {
        __m512 most = largest[v];
        for (i64 key = 0; key < kBlock; ++key) {
            float* at = scores + key * kBlock + 16 * v;
            __m512 score = _mm512_mul_ps(_mm512_loadu_ps(at), times);
            if (!sees.all()) {
                score = _mm512_mask_blend_ps(sees.of(key, v), _mm512_set1_ps(-std::numeric_limits<float>::infinity()), score);
                _mm512_storeu_ps(at, score);
            }
            most = _mm512_max_ps(most, score);
        }
        const __m512 base = _mm512_max_ps(most, nothing);  // where no key has been seen yet
        shrink[v] = exp2_of_negative(_mm512_sub_ps(_mm512_max_ps(largest[v], nothing), base));
        __m512 sum = _mm512_setzero_ps();
        for (i64 key = 0; key < kBlock; ++key) {
            float* at = scores + key * kBlock + 16 * v;
            const __m512 score = _mm512_loadu_ps(at);
            const __m512 power = exp2_of_negative(sees.all() ? _mm512_fmsub_ps(score, times, base) : _mm512_sub_ps(score, base));
            sum = _mm512_add_ps(sum, power);
            _mm512_storeu_ps(at, power);
        }
        total[v] = _mm512_fmadd_ps(total[v], shrink[v], sum);
        largest[v] = most;
    }
}

template <typename Format>
void attend(const Shape& shape, const Rows<const typename Format::Number>& query,
            const Rows<const typename Format::Number>& key, const Rows<typename Format::Number>& out, float* log_sums,
            Scratch<Format>& scratch) {
    constexpr i64 per = Format::per_word;
    const i64 width_words = shape.width / per, length_words = shape.length / per, block_words = kBlock / per;
    const float factor = shape.scale * 1.44269504f;
    for (i64 block = 0; block < shape.length / kBlock; ++block) {
        transpose(query.words(block * kBlock), query.stride / per, kBlock, width_words, scratch.queries.data(), kBlock);
        __m512 largest[kVectors], total[kVectors], shrink[kVectors];
        for (i64 v = 0; v < kVectors; ++v) {
            largest[v] = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
            total[v] = _mm512_setzero_ps();
        }
        std::memset(scratch.sum.data(), 0, sizeof(float) * scratch.sum.size());
        const i64 last_start = shape.last_start(block);
        for (i64 keys = shape.first_block(block); keys <= block; ++keys) {
            product<Format, false>(key.words(keys * kBlock), key.stride / per, kBlock, scratch.queries.data(), kBlock,
                                   kBlock, width_words, scratch.scores.data(), kBlock);
            soften(Visibility(shape, block, keys, last_start), factor, scratch.scores.data(), largest, total, shrink);
            for (i64 d = 0; d < shape.width; ++d)
                for (i64 v = 0; v < kVectors; ++v) {
                    float* at = scratch.sum.data() + d * kBlock + 16 * v;
                    _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), shrink[v]));
                }
            const word* right = packed_block(Format{}, scratch.scores.data(), scratch.right.data());
            product<Format, true>(scratch.turned.data() + keys * block_words, length_words, shape.width, right, kBlock,
                                  kBlock, block_words, scratch.sum.data(), kBlock);
        }
        float sums[kBlock], most[kBlock];
        for (i64 v = 0; v < kVectors; ++v) {
            _mm512_storeu_ps(sums + 16 * v, total[v]);
            _mm512_storeu_ps(most + 16 * v, largest[v]);
            const __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), total[v]);
            for (i64 d = 0; d < shape.width; ++d) {
                float* at = scratch.sum.data() + d * kBlock + 16 * v;
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), share));
            }
        }
        for (i64 q = 0; q < kBlock; ++q) log_sums[block * kBlock + q] = most[q] + std::log2(sums[q]);
        store_turned(shape, scratch, out, block * kBlock);
    }
}

// Σ grad * out of each of 64 rows.
template <typename Format>
void row_products(const Shape& shape, const Rows<const typename Format::Number>& grad,
                  const Rows<const typename Format::Number>& out, i64 first, float* to) {
    for (i64 q = 0; q < kBlock; ++q) {
        __m512 sum = _mm512_setzero_ps();
        for (i64 d = 0; d < shape.width; d += 16)
            sum = _mm512_fmadd_ps(Format::load(grad.at(first + q) + d), Format::load(out.at(first + q) + d), sum);
        to[q] = _mm512_reduce_add_ps(sum);
    }
}

// Scores into probabilities, and the gradients of probabilities (in `slopes`) into those of scores.
inline void slope(const Visibility& sees, float scale, float* scores, float* slopes, const float* log_sums,
                  const float* products) {
    const __m512 times = _mm512_set1_ps(scale * 1.44269504f), by = _mm512_set1_ps(scale);
    for (i64 key = 0; key < kBlock; ++key)
        for (i64 v = 0; v < kVectors; ++v) {
            float* score = scores + key * kBlock + 16 * v;
            float* to = slopes + key * kBlock + 16 * v;
            const __m512 exponent = _mm512_fmsub_ps(_mm512_loadu_ps(score), times, _mm512_loadu_ps(log_sums + 16 * v));
            __m512 power = exp2_of_negative(exponent);
            if (!sees.all()) power = _mm512_maskz_mov_ps(sees.of(key, v), power);
            const __m512 difference = _mm512_sub_ps(_mm512_loadu_ps(to), _mm512_loadu_ps(products + 16 * v));
            _mm512_storeu_ps(score, power);
            _mm512_storeu_ps(to, _mm512_mul_ps(_mm512_mul_ps(power, difference), by));
        }
}

// One head of queries. `scratch.turned` holds its keys, turned; adds to `scratch.key_grads` and `value_grads`.
template <typename Format>
void attend_backward(const Shape& shape, const Rows<const typename Format::Number>& query,
                     const Rows<const typename Format::Number>& key, const Rows<const typename Format::Number>& value,
                     const Rows<const typename Format::Number>& out, const Rows<const typename Format::Number>& grad,
                     const float* log_sums, const Rows<typename Format::Number>& query_grad, Scratch<Format>& scratch) {
    constexpr i64 per = Format::per_word;
    const i64 width_words = shape.width / per, length_words = shape.length / per, block_words = kBlock / per;
    float products[kBlock];
    for (i64 block = 0; block < shape.length / kBlock; ++block) {
        const i64 first = block * kBlock;
        transpose(query.words(first), query.stride / per, kBlock, width_words, scratch.queries.data(), kBlock);
        transpose(grad.words(first), grad.stride / per, kBlock, width_words, scratch.grads.data(), kBlock);
        pack_rows(Format{}, query.at(first), query.stride, kBlock, shape.width, scratch.query_rows.data());
        pack_rows(Format{}, grad.at(first), grad.stride, kBlock, shape.width, scratch.grad_rows.data());
        row_products<Format>(shape, grad, out, first, products);
        std::memset(scratch.sum.data(), 0, sizeof(float) * scratch.sum.size());
        const i64 last_start = shape.last_start(block);
        for (i64 keys = shape.first_block(block); keys <= block; ++keys) {
            float *scores = scratch.scores.data(), *slopes = scratch.slopes.data();
            product<Format, false>(key.words(keys * kBlock), key.stride / per, kBlock, scratch.queries.data(), kBlock,
                                   kBlock, width_words, scores, kBlock);
            product<Format, false>(value.words(keys * kBlock), value.stride / per, kBlock, scratch.grads.data(), kBlock,
                                   kBlock, width_words, slopes, kBlock);
            slope(Visibility(shape, block, keys, last_start), shape.scale, scores, slopes, log_sums + first, products);
            const i64 at = keys * kBlock * shape.width;
            product<Format, true>(row_block(Format{}, scores, scratch.left.data()), block_words, kBlock,
                                  scratch.grad_rows.data(), shape.width, shape.width, block_words,
                                  scratch.value_grads.data() + at, shape.width);
            product<Format, true>(row_block(Format{}, slopes, scratch.left.data()), block_words, kBlock,
                                  scratch.query_rows.data(), shape.width, shape.width, block_words,
                                  scratch.key_grads.data() + at, shape.width);
            product<Format, true>(scratch.turned.data() + keys * block_words, length_words, shape.width,
                                  packed_block(Format{}, slopes, scratch.right.data()), kBlock, kBlock, block_words,
                                  scratch.sum.data(), kBlock);
        }
        store_turned(shape, scratch, query_grad, first);
    }
}

}  // namespace megagpt

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // MEGAGPT_SIMD
