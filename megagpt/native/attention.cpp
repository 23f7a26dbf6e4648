// The extension module megagpt.native._attention: causal attention on CPUs with AVX-512 and its bfloat16 instructions.
// megagpt/kernels/attention_native.py calls it with the addresses of torch tensors and says what the numbers mean.
//
// Heads are shared out over threads. The interpreter's lock is released while a function works.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <type_traits>
#include <vector>

#include "attention_blocks.h"
#include "threads.h"

namespace {

#if MEGAGPT_SIMD

using namespace megagpt;

// A tensor [B, N, S, D] whose last dimension is contiguous; strides in numbers.
struct Tensor {
    unsigned long long address = 0;
    long long of_batch = 0, of_head = 0, of_row = 0;
    template <typename Number>
    Rows<Number> head(i64 batch, i64 head) const {
        return {reinterpret_cast<Number*>(address) + batch * of_batch + head * of_head, of_row};
    }
};

struct Call {
    int is_bfloat16 = 0, num_threads = 1;
    long long batch = 0, heads = 0, key_heads = 0, length = 0, width = 0;
    double scale = 0;
    unsigned long long starts = 0;  // [B, S] int32, or 0

    Shape shape(i64 of_batch) const {
        const auto* all = reinterpret_cast<const std::int32_t*>(starts);
        return {length, width, static_cast<float>(scale), all == nullptr ? nullptr : all + of_batch * length};
    }

    // Runs `work(batch, head of keys, scratch)` for each, on as many threads as there are.
    template <typename Format, typename Work>
    void share_out(bool backward, const Work& work) const {
        std::atomic<i64> next{0};
        const auto take = [&] {
            Scratch<Format> scratch(shape(0), backward);
            for (i64 task = next++; task < batch * key_heads; task = next++)
                work(task / key_heads, task % key_heads, scratch);
        };
        std::vector<std::thread> others;
        for (int i = 1; i < num_threads && i < batch * key_heads; ++i) start_thread(others, take);
        take();
        for (std::thread& other : others) other.join();
    }
};

template <typename Format>
void run_forward(const Call& call, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out,
                 float* log_sums) {
    using Number = typename Format::Number;
    const i64 group = call.heads / call.key_heads;
    call.share_out<Format>(false, [&](i64 batch, i64 key_head, Scratch<Format>& scratch) {
        const Shape shape = call.shape(batch);
        turn_rows<Format>(shape, value.head<const Number>(batch, key_head), scratch);
        for (i64 head = key_head * group; head < (key_head + 1) * group; ++head)
            attend<Format>(shape, query.head<const Number>(batch, head), key.head<const Number>(batch, key_head),
                           out.head<Number>(batch, head), log_sums + (batch * call.heads + head) * call.length, scratch);
    });
}

template <typename Format>
void run_backward(const Call& call, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out,
                  const Tensor& grad, const float* log_sums, const Tensor& query_grad, const Tensor& key_grad,
                  const Tensor& value_grad) {
    using Number = typename Format::Number;
    const i64 group = call.heads / call.key_heads;
    call.share_out<Format>(true, [&](i64 batch, i64 key_head, Scratch<Format>& scratch) {
        const Shape shape = call.shape(batch);
        const auto keys = key.head<const Number>(batch, key_head), values = value.head<const Number>(batch, key_head);
        turn_rows<Format>(shape, keys, scratch);
        std::fill(scratch.key_grads.begin(), scratch.key_grads.end(), 0.0f);
        std::fill(scratch.value_grads.begin(), scratch.value_grads.end(), 0.0f);
        for (i64 head = key_head * group; head < (key_head + 1) * group; ++head)
            attend_backward<Format>(shape, query.head<const Number>(batch, head), keys, values,
                                    out.head<const Number>(batch, head), grad.head<const Number>(batch, head),
                                    log_sums + (batch * call.heads + head) * call.length,
                                    query_grad.head<Number>(batch, head), scratch);
        store_all<Format>(shape, scratch.key_grads.data(), key_grad.head<Number>(batch, key_head));
        store_all<Format>(shape, scratch.value_grads.data(), value_grad.head<Number>(batch, key_head));
    });
}

bool usable() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

#define TENSOR_FORMAT "(KLLL)"
#define TENSOR(t) &(t).address, &(t).of_batch, &(t).of_head, &(t).of_row
#define CALL_FORMAT "(piLLLLLdK)"
#define CALL(c)                                                                                              \
    &(c).is_bfloat16, &(c).num_threads, &(c).batch, &(c).heads, &(c).key_heads, &(c).length, &(c).width, &(c).scale, \
        &(c).starts

bool fits(const Call& call) {
    const bool right = call.length % kBlock == 0 && call.width % 16 == 0 && call.key_heads > 0 &&
                       call.heads % call.key_heads == 0 && call.num_threads > 0;
    if (!right) PyErr_SetString(PyExc_ValueError, "attention: the shape does not fit");
    return right;
}

PyObject* forward(PyObject*, PyObject* arguments) {
    Call call;
    Tensor query, key, value, out;
    unsigned long long log_sums;
    if (!PyArg_ParseTuple(arguments, CALL_FORMAT TENSOR_FORMAT TENSOR_FORMAT TENSOR_FORMAT TENSOR_FORMAT "K", CALL(call),
                          TENSOR(query), TENSOR(key), TENSOR(value), TENSOR(out), &log_sums) ||
        !fits(call))
        return nullptr;
    auto* sums = reinterpret_cast<float*>(log_sums);
    Py_BEGIN_ALLOW_THREADS;
    if (call.is_bfloat16)
        run_forward<BFloat16>(call, query, key, value, out, sums);
    else
        run_forward<Float32>(call, query, key, value, out, sums);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* backward(PyObject*, PyObject* arguments) {
    Call call;
    Tensor query, key, value, out, grad, query_grad, key_grad, value_grad;
    unsigned long long log_sums;
    if (!PyArg_ParseTuple(arguments,
                          CALL_FORMAT TENSOR_FORMAT TENSOR_FORMAT TENSOR_FORMAT TENSOR_FORMAT TENSOR_FORMAT
                          "K" TENSOR_FORMAT TENSOR_FORMAT TENSOR_FORMAT,
                          CALL(call), TENSOR(query), TENSOR(key), TENSOR(value), TENSOR(out), TENSOR(grad), &log_sums,
                          TENSOR(query_grad), TENSOR(key_grad), TENSOR(value_grad)) ||
        !fits(call))
        return nullptr;
    const auto* sums = reinterpret_cast<const float*>(log_sums);
    Py_BEGIN_ALLOW_THREADS;
    if (call.is_bfloat16)
        run_backward<BFloat16>(call, query, key, value, out, grad, sums, query_grad, key_grad, value_grad);
    else
        run_backward<Float32>(call, query, key, value, out, grad, sums, query_grad, key_grad, value_grad);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

#else

bool usable() { return false; }
PyObject* forward(PyObject*, PyObject*) {
    PyErr_SetString(PyExc_RuntimeError, "attention: not on this processor");
    return nullptr;
}
PyObject* backward(PyObject* self, PyObject* arguments) { return forward(self, arguments); }

#endif

PyObject* is_usable(PyObject*, PyObject*) { return PyBool_FromLong(usable()); }

PyMethodDef methods[] = {
    {"is_usable", is_usable, METH_NOARGS, "is_usable() -> whether this processor has the instructions"},
    {"forward", forward, METH_VARARGS, "forward(call, query, key, value, out, log_sums)"},
    {"backward", backward, METH_VARARGS,
     "backward(call, query, key, value, out, grad, log_sums, query_grad, key_grad, value_grad)"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_attention", "Causal attention on the CPU.", -1, methods,
                      nullptr,               nullptr,      nullptr,                        nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__attention() { return PyModule_Create(&module); }
