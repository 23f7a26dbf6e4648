// Small dense blocks on AVX-512: products, transposes, exponentials. For float32 and, two numbers a 32-bit word, bfloat16.
//
// A "word" is 32 bits: one float32, or two neighbouring bfloat16. With that, one product serves both formats:
// C[rows][columns] += A[rows][words] x B[words][columns], where a word of B holds, for bfloat16, the same column of two
// neighbouring rows. Sums are in float32.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define MEGAGPT_SIMD 1
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#endif

namespace megagpt {

using i64 = std::int64_t;
using word __attribute__((may_alias)) = std::uint32_t;
using half __attribute__((may_alias)) = std::uint16_t;

struct Float32 {
    using Number = float;
    static constexpr i64 per_word = 1;
    static __m512 add_product(__m512 sum, __m512i a, __m512i b) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
    static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
    static void store(float* to, __m512 values) { _mm512_storeu_ps(to, values); }
};

struct BFloat16 {
    using Number = half;
    static constexpr i64 per_word = 2;
    static __m512 add_product(__m512 sum, __m512i a, __m512i b) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
    static __m512 load(const half* from) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static __m256i round(__m512 values) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)); }
    static void store(half* to, __m512 values) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), round(values)); }
};

// C[R][16 * V] (+)= A[R][words] x B[words][16 * V], all sums in registers.
template <typename Format, int R, int V, bool Add>
inline void product_tile(const word* a, i64 a_stride, const word* b, i64 b_stride, i64 words, float* c, i64 c_stride) {
    __m512 sum[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sum[r][v] = Add ? _mm512_loadu_ps(c + r * c_stride + 16 * v) : _mm512_setzero_ps();
    for (i64 w = 0; w < words; ++w) {
        __m512i right[V];
        for (int v = 0; v < V; ++v) right[v] = _mm512_loadu_si512(b + w * b_stride + 16 * v);
        for (int r = 0; r < R; ++r) {
            const __m512i left = _mm512_set1_epi32(static_cast<int>(a[r * a_stride + w]));
            for (int v = 0; v < V; ++v) sum[r][v] = Format::add_product(sum[r][v], left, right[v]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + r * c_stride + 16 * v, sum[r][v]);
}

// The same for any number of rows that 8 divides and of columns that 16 divides.
template <typename Format, bool Add>
inline void product(const word* a, i64 a_stride, i64 rows, const word* b, i64 b_stride, i64 columns, i64 words, float* c,
                    i64 c_stride) {
    for (i64 column = 0; column < columns;) {
        const i64 left = (columns - column) / 16;
        const i64 take = left == 5 ? 3 : left < 4 ? left : 4;
        const word* right = b + column;
        for (i64 r = 0; r < rows; r += 8) {
            const word* rows_of_a = a + r * a_stride;
            float* to = c + r * c_stride + column;
            if (take == 4) {
                product_tile<Format, 4, 4, Add>(rows_of_a, a_stride, right, b_stride, words, to, c_stride);
                product_tile<Format, 4, 4, Add>(rows_of_a + 4 * a_stride, a_stride, right, b_stride, words,
                                                to + 4 * c_stride, c_stride);
            } else if (take == 3) {
                product_tile<Format, 8, 3, Add>(rows_of_a, a_stride, right, b_stride, words, to, c_stride);
            } else if (take == 2) {
                product_tile<Format, 8, 2, Add>(rows_of_a, a_stride, right, b_stride, words, to, c_stride);
            } else {
                product_tile<Format, 8, 1, Add>(rows_of_a, a_stride, right, b_stride, words, to, c_stride);
            }
        }
        column += 16 * take;
    }
}

// to[c][r] = from[r][c] for 16 rows and up to 16 columns of words.
inline void transpose_tile(const word* from, i64 from_stride, i64 columns, word* to, i64 to_stride) {
    const __mmask16 mask = static_cast<__mmask16>((1u << columns) - 1);
    __m512i a[16], b[16];
    for (int r = 0; r < 16; ++r) a[r] = _mm512_maskz_loadu_epi32(mask, from + r * from_stride);
    for (int r = 0; r < 16; r += 2) {
        b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
        b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    }
    for (int r = 0; r < 16; r += 4) {
        a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
        a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
        a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
        a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
    for (int r = 0; r < 4; ++r) {
        b[r] = _mm512_shuffle_i32x4(a[r], a[r + 4], 0x88);
        b[r + 4] = _mm512_shuffle_i32x4(a[r], a[r + 4], 0xdd);
        b[r + 8] = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0x88);
        b[r + 12] = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0xdd);
    }
    for (int r = 0; r < 4; ++r) {
        a[r] = _mm512_shuffle_i32x4(b[r], b[r + 8], 0x88);
        a[r + 8] = _mm512_shuffle_i32x4(b[r], b[r + 8], 0xdd);
        a[r + 4] = _mm512_shuffle_i32x4(b[r + 4], b[r + 12], 0x88);
        a[r + 12] = _mm512_shuffle_i32x4(b[r + 4], b[r + 12], 0xdd);
    }
    for (i64 c = 0; c < columns; ++c) _mm512_storeu_si512(to + c * to_stride, a[c]);
}

// to[c][r] = from[r][c]; 16 divides the rows.
inline void transpose(const word* from, i64 from_stride, i64 rows, i64 columns, word* to, i64 to_stride) {
    for (i64 r = 0; r < rows; r += 16)
        for (i64 c = 0; c < columns; c += 16)
            transpose_tile(from + r * from_stride + c, from_stride, columns - c < 16 ? columns - c : 16,
                           to + c * to_stride + r, to_stride);
}

// Two rows of bfloat16 as one row of words: columns side by side become a word's lower and upper half.
inline __m512i pair(__m256i lower, __m256i upper) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(lower), _mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}

// Rows of numbers [rows][columns] as B wants them: [rows / per_word][columns] words. 16 divides the columns.
inline void pack_rows(Float32, const float* from, i64 from_stride, i64 rows, i64 columns, word* to) {
    for (i64 r = 0; r < rows; ++r) std::memcpy(to + r * columns, from + r * from_stride, sizeof(float) * columns);
}
inline void pack_rows(BFloat16, const half* from, i64 from_stride, i64 rows, i64 columns, word* to) {
    for (i64 r = 0; r < rows; r += 2)
        for (i64 c = 0; c < columns; c += 16) {
            const half* lower = from + r * from_stride + c;
            const __m512i words = pair(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lower)),
                                       _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lower + from_stride)));
            _mm512_storeu_si512(to + r / 2 * columns + c, words);
        }
}

// 2 to the x, for x <= 0; relative error 2e-7, 0 below 2^-149. What is no number stays none: the second operand of a
// maximum is the one that is given then.
inline __m512 exp2_of_negative(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    const __m512 whole = _mm512_roundscale_ps(x, 8);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(1.5403530e-4f);
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.3333558e-3f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(9.6181291e-3f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(5.5504109e-2f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(2.4022651e-1f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(6.9314718e-1f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

}  // namespace megagpt

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // x86-64
