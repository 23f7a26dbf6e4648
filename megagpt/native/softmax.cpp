// The extension module megagpt.native._softmax: softmax of rows of logits and its gradient in their place, on CPUs with
// AVX-512 and its bfloat16 instructions. megagpt/kernels/cross_entropy_native.py calls it with the addresses of torch
// tensors and says what the numbers mean.
//
// A row is read once for its maximum and once for its exponentials, which stay in the cache until the row is written.
// Rows are shared out over threads. The interpreter's lock is released meanwhile.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "simd_blocks.h"
#include "threads.h"

namespace {

#if MEGAGPT_SIMD

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#endif

using namespace megagpt;

constexpr float kLog2E = 1.44269504f;

struct Call {
    int is_bfloat16 = 0, is_known = 0, num_threads = 1;
    long long num_rows = 0, row_stride = 0, width = 0, num_valid = 0, first = 0;
    unsigned long long logits = 0, labels = 0, weights = 0, sums = 0, scores = 0;  // weights: 0 where nothing is written
};

inline __m512 load_part(Float32, const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 load_part(BFloat16, const half* from, __mmask16 mask) {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void store_part(Float32, float* to, __mmask16 mask, __m512 values) { _mm512_mask_storeu_ps(to, mask, values); }
inline void store_part(BFloat16, half* to, __mmask16 mask, __m512 values) {
    _mm256_mask_storeu_epi16(to, mask, BFloat16::round(values));
}
inline void store_number(float* to, float value) { *to = value; }
inline void store_number(half* to, float value) {
    store_part(BFloat16{}, to, 1, _mm512_set1_ps(value));
}

inline __mmask16 mask_of(i64 columns) { return static_cast<__mmask16>(columns >= 16 ? 0xffff : (1u << columns) - 1); }

// The largest of a row, and 0 where all of it is finite, else NaN.
template <typename Format>
float largest_of(const typename Format::Number* row, i64 columns, float* flaw) {
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const __m512 zero = _mm512_setzero_ps();
    __m512 most[4] = {lowest, lowest, lowest, lowest}, flaws[4] = {zero, zero, zero, zero};
    i64 c = 0;
    for (; c + 64 <= columns; c += 64)
        for (int v = 0; v < 4; ++v) {
            const __m512 values = Format::load(row + c + 16 * v);
            most[v] = _mm512_max_ps(most[v], values);
            flaws[v] = _mm512_fmadd_ps(values, zero, flaws[v]);
        }
    for (; c < columns; c += 16) {
        const __mmask16 mask = mask_of(columns - c);
        const __m512 values = load_part(Format{}, row + c, mask);
        most[0] = _mm512_mask_max_ps(most[0], mask, most[0], values);
        flaws[0] = _mm512_fmadd_ps(values, zero, flaws[0]);
    }
    *flaw = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(flaws[0], flaws[1]), _mm512_add_ps(flaws[2], flaws[3])));
    return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])));
}

// Exponentials of a row less `shift` into `to`, whose room is a multiple of 64; returns their sum.
template <typename Format>
double exponentials_of(const typename Format::Number* row, i64 columns, float shift, float* to) {
    const __m512 log2e = _mm512_set1_ps(kLog2E), away = _mm512_set1_ps(-shift);
    const __m512 zero = _mm512_setzero_ps();
    __m512 sums[4] = {zero, zero, zero, zero};
    i64 c = 0;
    for (; c + 64 <= columns; c += 64)
        for (int v = 0; v < 4; ++v) {
            const __m512 values = Format::load(row + c + 16 * v);
            const __m512 powers = exp2_of_negative(_mm512_mul_ps(_mm512_add_ps(values, away), log2e));
            sums[v] = _mm512_add_ps(sums[v], powers);
            _mm512_storeu_ps(to + c + 16 * v, powers);
        }
    for (; c < columns; c += 16) {
        const __mmask16 mask = mask_of(columns - c);
        const __m512 values = load_part(Format{}, row + c, mask);
        const __m512 powers = exp2_of_negative(_mm512_mul_ps(_mm512_add_ps(values, away), log2e));
        sums[0] = _mm512_mask_add_ps(sums[0], mask, sums[0], powers);
        _mm512_storeu_ps(to + c, powers);
    }
    double total = 0;
    for (const __m512& sum : sums) total += static_cast<double>(_mm512_reduce_add_ps(sum));
    return total;
}

template <typename Format>
void write_row(const float* powers, i64 columns, i64 width, float factor, typename Format::Number* row) {
    const __m512 factors = _mm512_set1_ps(factor);
    i64 c = 0;
    for (; c + 16 <= columns; c += 16) Format::store(row + c, _mm512_mul_ps(_mm512_loadu_ps(powers + c), factors));
    if (c < columns)
        store_part(Format{}, row + c, mask_of(columns - c), _mm512_mul_ps(_mm512_loadu_ps(powers + c), factors));
    for (c = columns; c < width; ++c) row[c] = 0;
}

template <typename Format>
void work_on_row(const Call& call, i64 r, std::vector<float>& powers) {
    using Number = typename Format::Number;
    auto* row = reinterpret_cast<Number*>(call.logits) + r * call.row_stride;
    auto& sum = reinterpret_cast<float*>(call.sums)[r];
    auto& score = reinterpret_cast<float*>(call.scores)[r];
    const i64 label = reinterpret_cast<const std::int64_t*>(call.labels)[r] - call.first;
    const bool here = label >= 0 && label < call.num_valid;
    double total = 1;
    if (call.is_known) {
        exponentials_of<Format>(row, call.num_valid, sum, powers.data());
    } else {
        score = here ? _mm512_cvtss_f32(load_part(Format{}, row + label, 1)) : 0.0f;
        float flaw = 0;
        const float largest = largest_of<Format>(row, call.num_valid, &flaw);
        const float shift = call.num_valid > 0 ? largest : 0.0f;
        total = exponentials_of<Format>(row, call.num_valid, shift, powers.data()) + flaw;
        sum = static_cast<float>(static_cast<double>(shift) + std::log(total));
    }
    if (call.weights == 0) return;
    const float weight = reinterpret_cast<const float*>(call.weights)[r];
    // what is not finite stays so, also in a row that another rank's columns made so
    const float flaw = std::isfinite(sum) ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    write_row<Format>(powers.data(), call.num_valid, call.width, static_cast<float>(weight / total) + flaw, row);
    if (here) store_number(row + label, std::expm1(score - sum) * weight);
}

template <typename Format>
void run(const Call& call) {
    std::atomic<i64> next{0};
    const auto take = [&] {
        std::vector<float> powers(static_cast<std::size_t>(call.num_valid + 63) / 64 * 64);
        for (i64 r = next++; r < call.num_rows; r = next++) work_on_row<Format>(call, r, powers);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < call.num_threads && i < call.num_rows; ++i) megagpt::start_thread(others, take);
    take();
    for (std::thread& other : others) other.join();
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

bool usable() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

PyObject* rows(PyObject*, PyObject* arguments) {
    Call call;
    if (!PyArg_ParseTuple(arguments, "ppiLLLLLKKKKK", &call.is_bfloat16, &call.is_known, &call.num_threads,
                          &call.num_rows, &call.row_stride, &call.width, &call.num_valid, &call.first, &call.logits,
                          &call.labels, &call.weights, &call.sums, &call.scores))
        return nullptr;
    Py_BEGIN_ALLOW_THREADS;
    if (call.is_bfloat16)
        run<BFloat16>(call);
    else
        run<Float32>(call);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

#else

bool usable() { return false; }
PyObject* rows(PyObject*, PyObject*) {
    PyErr_SetString(PyExc_RuntimeError, "softmax: not on this processor");
    return nullptr;
}

#endif

PyObject* is_usable(PyObject*, PyObject*) { return PyBool_FromLong(usable()); }

PyMethodDef methods[] = {
    {"is_usable", is_usable, METH_NOARGS, "is_usable() -> whether this processor has the instructions"},
    {"rows", rows, METH_VARARGS,
     "rows(is_bfloat16, is_known, threads, rows, row_stride, width, num_valid, first, logits, labels, weights, sums, "
     "scores)"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_softmax", "Softmax of rows of logits on the CPU.", -1, methods,
                      nullptr,               nullptr,    nullptr,                                 nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__softmax() { return PyModule_Create(&module); }
