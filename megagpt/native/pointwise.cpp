// The extension module megagpt.native._pointwise: bias and GELU on CPUs with AVX-512 and its bfloat16 instructions.
// megagpt/kernels/bias_gelu_native.py calls it with the addresses of torch tensors and says what the numbers mean.
//
// Rows are shared out over threads. The interpreter's lock is released while a function works.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <vector>

#include "simd_blocks.h"
#include "threads.h"

namespace {

#if MEGAGPT_SIMD

using namespace megagpt;

struct Call {
    int is_bfloat16 = 0, num_threads = 1;
    long long rows = 0, width = 0;

    // Runs `work(thread, first row, row after the last)`, each thread on rows of its own.
    template <typename Work>
    void share_out(const Work& work) const {
        const i64 all = rows, each = (all + num_threads - 1) / num_threads;
        const auto part = [&](int thread) { work(thread, std::min(all, thread * each), std::min(all, (thread + 1) * each)); };
        std::vector<std::thread> others;
        for (int thread = 1; thread < num_threads; ++thread) megagpt::start_thread(others, [&part, thread] { part(thread); });
        part(0);
        for (std::thread& other : others) other.join();
    }
};

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#endif

// 0.5 (1 + tanh u) = sigmoid(z) with z = 2 u = x (kLinear + kCubic x^2): sqrt(8 / pi), and 0.044715 times that.
constexpr float kLinear = 1.5957691216057308f, kCubic = 0.07135481627260025f;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLargeSquare = 1e6f;  // of an x at which the slope is 0 or 1 to the last bit; keeps infinities out

struct Sigmoid {
    __m512 value, slope;  // slope: value (1 - value)
};

// Of z: with e = exp(-|z|), 1 / (1 + e) or e / (1 + e), and e / (1 + e)^2.
inline Sigmoid sigmoid(__m512 z) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 e = exp2_of_negative(_mm512_mul_ps(_mm512_abs_ps(z), _mm512_set1_ps(-kLog2E)));
    const __m512 inverse = _mm512_div_ps(one, _mm512_add_ps(one, e));
    const __m512 other = _mm512_mul_ps(e, inverse);
    const __mmask16 negative = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_LT_OQ);
    return {_mm512_mask_blend_ps(negative, inverse, other), _mm512_mul_ps(other, inverse)};
}

template <typename Format, typename Number = typename Format::Number>
void gelu_rows(const Number* values, const Number* bias, Number* out, i64 rows, i64 width) {
    const __m512 linear = _mm512_set1_ps(kLinear), cubic = _mm512_set1_ps(kCubic);
    for (i64 row = 0; row < rows; ++row, values += width, out += width)
        for (i64 c = 0; c < width; c += 16) {
            const __m512 x = _mm512_add_ps(Format::load(values + c), Format::load(bias + c));
            const __m512 z = _mm512_mul_ps(x, _mm512_fmadd_ps(cubic, _mm512_mul_ps(x, x), linear));
            Format::store(out + c, _mm512_mul_ps(x, sigmoid(z).value));
        }
}

// Also adds the gradients of each column to `sums` [width].
template <typename Format, typename Number = typename Format::Number>
void gelu_rows_backward(const Number* grad, const Number* values, const Number* bias, Number* grad_values, float* sums,
                        i64 rows, i64 width) {
    const __m512 linear = _mm512_set1_ps(kLinear), cubic = _mm512_set1_ps(kCubic);
    const __m512 cubic_slope = _mm512_set1_ps(3 * kCubic), large = _mm512_set1_ps(kLargeSquare);
    for (i64 row = 0; row < rows; ++row, grad += width, values += width, grad_values += width)
        for (i64 c = 0; c < width; c += 16) {
            const __m512 x = _mm512_add_ps(Format::load(values + c), Format::load(bias + c));
            const __m512 square = _mm512_min_ps(_mm512_mul_ps(x, x), large);
            const Sigmoid share = sigmoid(_mm512_mul_ps(x, _mm512_fmadd_ps(cubic, square, linear)));
            const __m512 inner = _mm512_mul_ps(_mm512_mul_ps(x, share.slope), _mm512_fmadd_ps(cubic_slope, square, linear));
            const __m512 found = _mm512_mul_ps(Format::load(grad + c), _mm512_add_ps(share.value, inner));
            Format::store(grad_values + c, found);
            _mm512_storeu_ps(sums + c, _mm512_add_ps(_mm512_loadu_ps(sums + c), found));
        }
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

template <typename Format, typename Number = typename Format::Number>
void run_forward(const Call& call, const void* values, const void* bias, void* out) {
    call.share_out([&](int, i64 first, i64 last) {
        gelu_rows<Format>(static_cast<const Number*>(values) + first * call.width, static_cast<const Number*>(bias),
                          static_cast<Number*>(out) + first * call.width, last - first, call.width);
    });
}

template <typename Format, typename Number = typename Format::Number>
void run_backward(const Call& call, const void* grad, const void* values, const void* bias, void* grad_values, float* sums) {
    call.share_out([&](int thread, i64 first, i64 last) {
        const i64 at = first * call.width;
        gelu_rows_backward<Format>(static_cast<const Number*>(grad) + at, static_cast<const Number*>(values) + at,
                                   static_cast<const Number*>(bias), static_cast<Number*>(grad_values) + at,
                                   sums + thread * call.width, last - first, call.width);
    });
}

bool usable() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

#define CALL_FORMAT "(piLL)"
#define CALL(c) &(c).is_bfloat16, &(c).num_threads, &(c).rows, &(c).width

bool fits(const Call& call) {
    const bool right = call.width % 16 == 0 && call.rows >= 0 && call.num_threads > 0;
    if (!right) PyErr_SetString(PyExc_ValueError, "bias and GELU: the shape does not fit");
    return right;
}

void* at(unsigned long long address) { return reinterpret_cast<void*>(address); }

PyObject* gelu_forward(PyObject*, PyObject* arguments) {
    Call call;
    unsigned long long values, bias, out;
    if (!PyArg_ParseTuple(arguments, CALL_FORMAT "KKK", CALL(call), &values, &bias, &out) || !fits(call)) return nullptr;
    Py_BEGIN_ALLOW_THREADS;
    if (call.is_bfloat16)
        run_forward<BFloat16>(call, at(values), at(bias), at(out));
    else
        run_forward<Float32>(call, at(values), at(bias), at(out));
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* gelu_backward(PyObject*, PyObject* arguments) {
    Call call;
    unsigned long long grad, values, bias, grad_values, sums;
    if (!PyArg_ParseTuple(arguments, CALL_FORMAT "KKKKK", CALL(call), &grad, &values, &bias, &grad_values, &sums) ||
        !fits(call))
        return nullptr;
    Py_BEGIN_ALLOW_THREADS;
    auto* of_threads = static_cast<float*>(at(sums));
    if (call.is_bfloat16)
        run_backward<BFloat16>(call, at(grad), at(values), at(bias), at(grad_values), of_threads);
    else
        run_backward<Float32>(call, at(grad), at(values), at(bias), at(grad_values), of_threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

#else

bool usable() { return false; }
PyObject* gelu_forward(PyObject*, PyObject*) {
    PyErr_SetString(PyExc_RuntimeError, "bias and GELU: not on this processor");
    return nullptr;
}
PyObject* gelu_backward(PyObject* self, PyObject* arguments) { return gelu_forward(self, arguments); }

#endif

PyObject* is_usable(PyObject*, PyObject*) { return PyBool_FromLong(usable()); }

PyMethodDef methods[] = {
    {"is_usable", is_usable, METH_NOARGS, "is_usable() -> whether this processor has the instructions"},
    {"gelu_forward", gelu_forward, METH_VARARGS, "gelu_forward(call, values, bias, out)"},
    {"gelu_backward", gelu_backward, METH_VARARGS, "gelu_backward(call, grad, values, bias, grad_values, sums)"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_pointwise", "Bias and GELU on the CPU.", -1, methods,
                      nullptr,               nullptr,      nullptr,                     nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__pointwise() { return PyModule_Create(&module); }
