// The extension module megagpt.native._optimizer: the two passes over memory of a bfloat16 model's update on the CPU.
// megagpt/kernels/optimizer_step.py calls it with the addresses of torch tensors and says what the numbers mean.
//
// Both are bound by memory: numbers are read and written once. Ranges are shared out over threads; the interpreter's lock
// is released while a function works.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define MEGAGPT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MEGAGPT_CLONES
#endif

namespace {

using i64 = std::int64_t;
using bfloat16 = std::uint16_t;

inline float widen(bfloat16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// To the nearest, ties to even; a number that is none stays none.
inline bfloat16 round(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<bfloat16>(value != value ? 0x7fc0u : rounded);
}

MEGAGPT_CLONES void copy_wide(float* __restrict__ total, const bfloat16* __restrict__ gradient, i64 count) {
    for (i64 i = 0; i < count; ++i) total[i] = widen(gradient[i]);
}

MEGAGPT_CLONES void add_wide(float* __restrict__ total, const bfloat16* __restrict__ gradient, i64 count) {
    for (i64 i = 0; i < count; ++i) total[i] += widen(gradient[i]);
}

struct Step {
    float lr, beta1, beta2, epsilon, weight_decay, scale;  // scale: of the gradients
    float correction1, correction2;                        // 1 - beta1^t, sqrt(1 - beta2^t)
};

MEGAGPT_CLONES void adamw(const Step& given, float* __restrict__ master, bfloat16* __restrict__ weight,
                          const float* __restrict__ gradient, float* __restrict__ first, float* __restrict__ second,
                          i64 count) {
    const Step step = given;
    const float keep = 1.0f - step.lr * step.weight_decay, size = step.lr / step.correction1;
    const float rest1 = 1.0f - step.beta1, rest2 = 1.0f - step.beta2, share = 1.0f / step.correction2;
    for (i64 i = 0; i < count; ++i) {
        const float g = gradient[i] * step.scale;
        const float m = first[i] + rest1 * (g - first[i]);
        const float v = step.beta2 * second[i] + rest2 * g * g;
        const float w = master[i] * keep - size * m / (std::sqrt(v) * share + step.epsilon);
        first[i] = m;
        second[i] = v;
        master[i] = w;
        weight[i] = round(w);
    }
}

// Runs work(start, stop) over all numbers, a range for each thread.
template <typename Work>
void share_out(i64 count, int num_threads, const Work& work) {
    if (num_threads > count / 65536) num_threads = static_cast<int>(count / 65536);
    std::vector<std::thread> others;
    const i64 part = num_threads > 1 ? (count / num_threads + 63) / 64 * 64 : count;
    i64 start = 0;
    for (int i = 1; i < num_threads; ++i, start += part) megagpt::start_thread(others, [&work, start, part] { work(start, start + part); });
    work(start, count);
    for (std::thread& other : others) other.join();
}

PyObject* add_gradient(PyObject*, PyObject* arguments) {
    unsigned long long total, gradient;
    long long count;
    int is_first, num_threads;
    if (!PyArg_ParseTuple(arguments, "KKLpi", &total, &gradient, &count, &is_first, &num_threads)) return nullptr;
    auto* to = reinterpret_cast<float*>(total);
    const auto* from = reinterpret_cast<const bfloat16*>(gradient);
    Py_BEGIN_ALLOW_THREADS;
    share_out(count, num_threads, [&](i64 start, i64 stop) {
        (is_first ? copy_wide : add_wide)(to + start, from + start, stop - start);
    });
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* adamw_step(PyObject*, PyObject* arguments) {
    unsigned long long master, weight, gradient, first, second;
    long long count;
    int num_threads;
    Step step;
    if (!PyArg_ParseTuple(arguments, "KKKKKLiffffffff", &master, &weight, &gradient, &first, &second, &count, &num_threads,
                          &step.lr, &step.beta1, &step.beta2, &step.epsilon, &step.weight_decay, &step.scale,
                          &step.correction1, &step.correction2))
        return nullptr;
    Py_BEGIN_ALLOW_THREADS;
    share_out(count, num_threads, [&](i64 start, i64 stop) {
        adamw(step, reinterpret_cast<float*>(master) + start, reinterpret_cast<bfloat16*>(weight) + start,
              reinterpret_cast<const float*>(gradient) + start, reinterpret_cast<float*>(first) + start,
              reinterpret_cast<float*>(second) + start, stop - start);
    });
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"add_gradient", add_gradient, METH_VARARGS, "add_gradient(total, gradient, count, is_first, threads)"},
    {"adamw_step", adamw_step, METH_VARARGS,
     "adamw_step(master, weight, gradient, first, second, count, threads, lr, beta1, beta2, epsilon, weight_decay, "
     "scale, correction1, correction2)"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_optimizer", "The update of a bfloat16 model on the CPU.", -1, methods,
                      nullptr,               nullptr,      nullptr,                                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__optimizer() { return PyModule_Create(&module); }
