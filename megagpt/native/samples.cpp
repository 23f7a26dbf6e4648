// The extension module megagpt.native._samples: serving samples. Orders, the places of an epoch's tokens, the gathering
// of samples, the turns of a blend. In: memory-mapped arrays of an indexed dataset. Out: numbers written into the
// caller's arrays. megagpt/data/index_numpy.py says what each function means and gives the same results.
//
// All numbers are 64-bit. The interpreter's lock is released while a function works.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "samples_blend.h"
#include "samples_documents.h"
#include "samples_order.h"

namespace {

using namespace megagpt;

// A buffer argument that is given back at the end of the scope.
struct Buffer {
    Py_buffer view{};
    ~Buffer() {
        if (view.obj != nullptr) PyBuffer_Release(&view);
    }
    bool given() const { return view.buf != nullptr; }
    template <typename T>
    T* data() const {
        return static_cast<T*>(view.buf);
    }
    i64 bytes() const { return static_cast<i64>(view.len); }
    template <typename T>
    i64 count() const {
        return static_cast<i64>(view.len / static_cast<Py_ssize_t>(sizeof(T)));
    }
};

// A Python tuple (lengths, pointers, bounds | None, item_bytes, end_bytes, low, high) and what it points to.
struct DocumentsArgument {
    Buffer lengths, pointers, bounds;
    Documents value{};

    bool parse(PyObject* tuple) {
        long long item_bytes, end_bytes, low, high;
        if (!PyTuple_Check(tuple)) {
            PyErr_SetString(PyExc_TypeError, "documents must be a tuple");
            return false;
        }
        if (!PyArg_ParseTuple(tuple, "y*y*z*LLLL;documents", &lengths.view, &pointers.view, &bounds.view, &item_bytes,
                              &end_bytes, &low, &high))
            return false;
        const i64 num_sequences = lengths.count<std::int32_t>();
        if (pointers.count<i64>() != num_sequences || (bounds.given() && bounds.count<i64>() < 1) || item_bytes < 1) {
            PyErr_SetString(PyExc_ValueError, "the arrays of documents do not fit together");
            return false;
        }
        value = {{lengths.data<char>()},
                 {pointers.data<char>()},
                 {bounds.data<char>()},
                 num_sequences,
                 bounds.given() ? bounds.count<i64>() - 1 : num_sequences,
                 item_bytes,
                 end_bytes,
                 static_cast<u64>(low),
                 static_cast<u64>(high),
                 low == 0 && high == (1LL << 53)};
        return true;
    }
};

PyObject* order_numbers(PyObject*, PyObject* args) {
    Buffer key, numbers, out;
    long long count;
    if (!PyArg_ParseTuple(args, "z*Ly*w*", &key.view, &count, &numbers.view, &out.view)) return nullptr;
    Order order;
    const i64 n = numbers.count<i64>();
    if (!order.set(key.view.buf, key.bytes(), count) || out.count<i64>() != n)
        return PyErr_Format(PyExc_ValueError, "order: the key or the size of out is wrong");
    const i64* from = numbers.data<i64>();
    i64* to = out.data<i64>();
    bool inside = true;
    Py_BEGIN_ALLOW_THREADS;
    for (i64 i = 0; i < n; ++i) {
        if (from[i] < 0 || from[i] >= count) {
            inside = false;
            break;
        }
        to[i] = static_cast<i64>(order.at(static_cast<u64>(from[i])));
    }
    Py_END_ALLOW_THREADS;
    if (!inside) return PyErr_Format(PyExc_ValueError, "order: a number is not below %lld", count);
    Py_RETURN_NONE;
}

PyObject* split_totals(PyObject*, PyObject* args) {
    PyObject* tuple;
    if (!PyArg_ParseTuple(args, "O", &tuple)) return nullptr;
    DocumentsArgument argument;
    if (!argument.parse(tuple)) return nullptr;
    Totals totals;
    Py_BEGIN_ALLOW_THREADS;
    totals = count_split(argument.value);
    Py_END_ALLOW_THREADS;
    return Py_BuildValue("LL", static_cast<long long>(totals.documents), static_cast<long long>(totals.tokens));
}

PyObject* group_starts(PyObject*, PyObject* args) {
    PyObject* tuple;
    Buffer key, out;
    long long group;
    if (!PyArg_ParseTuple(args, "Oz*Lw*", &tuple, &key.view, &group, &out.view)) return nullptr;
    DocumentsArgument argument;
    if (!argument.parse(tuple)) return nullptr;
    const Documents& documents = argument.value;
    Order order;
    const i64 num_groups = group > 0 ? (documents.count + group - 1) / group : -1;
    if (!order.set(key.view.buf, key.bytes(), documents.count) || out.count<i64>() != num_groups + 1)
        return PyErr_Format(PyExc_ValueError, "group_starts: the key or the size of out is wrong");
    Py_BEGIN_ALLOW_THREADS;
    fill_starts(documents, order, group, num_groups, out.data<i64>());
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* gather(PyObject*, PyObject* args) {
    PyObject* tuple;
    Buffer tokens, key, starts, window_key, numbers, rows, out;
    long long group, num_windows, length;
    const char* type;
    if (!PyArg_ParseTuple(args, "y*sOz*y*Lz*Ly*y*Lw*", &tokens.view, &type, &tuple, &key.view, &starts.view, &group,
                          &window_key.view, &num_windows, &numbers.view, &rows.view, &length, &out.view))
        return nullptr;
    DocumentsArgument argument;
    if (!argument.parse(tuple)) return nullptr;
    const Documents& documents = argument.value;
    Order order, windows;
    const i64 n = numbers.count<i64>(), width = length + 1;
    const i64 num_groups = starts.count<i64>() - 1;
    const i64 num_rows = length > 0 ? out.count<i64>() / width : 0;
    if (!order.set(key.view.buf, key.bytes(), documents.count) ||
        !windows.set(window_key.view.buf, window_key.bytes(), num_windows) || copy_of(type) == nullptr || length < 1 ||
        group < 1 || group > kMaxGroup || num_groups != (documents.count + group - 1) / group ||
        rows.count<i64>() != n || tokens.bytes() < documents.end_bytes || num_rows * width != out.count<i64>())
        return PyErr_Format(PyExc_ValueError, "gather: the arguments do not fit together");
    const Epoch epoch{documents, order, windows, starts.data<i64>(), num_groups, group, num_windows};
    const Reading reading{tokens.data<char>(), copy_of(type), n,      numbers.data<i64>(),
                          rows.data<i64>(),    num_rows,      length, out.data<i64>()};
    const char* wrong = nullptr;
    Py_BEGIN_ALLOW_THREADS;
    wrong = read_samples(epoch, reading);
    Py_END_ALLOW_THREADS;
    if (wrong != nullptr) return PyErr_Format(PyExc_ValueError, "gather: %s", wrong);
    Py_RETURN_NONE;
}

PyObject* blend(PyObject*, PyObject* args) {
    Buffer weights, counts, ids, numbers;
    long long first, size;
    if (!PyArg_ParseTuple(args, "y*w*LLz*z*", &weights.view, &counts.view, &first, &size, &ids.view, &numbers.view))
        return nullptr;
    const i64 k = weights.count<i64>();
    bool fits = k > 0 && counts.count<i64>() == k && ids.given() == numbers.given();
    if (ids.given()) fits = fits && ids.count<std::uint16_t>() == size && numbers.count<i64>() == size;
    i64 total = 0;
    for (i64 i = 0; fits && i < k; ++i) {
        const i64 weight = weights.data<i64>()[i];
        fits = weight > 0 && weight <= (i64{1} << 60) - total;
        total += weight;
    }
    if (!fits) return PyErr_Format(PyExc_ValueError, "blend: the arguments do not fit together");
    bool right = true;
    Py_BEGIN_ALLOW_THREADS;
    right = take_turns(weights.data<i64>(), k, total, counts.data<i64>(), first, size, ids.data<std::uint16_t>(),
                       numbers.data<i64>());
    Py_END_ALLOW_THREADS;
    if (!right) return PyErr_Format(PyExc_ValueError, "blend: the counts are not those of these weights");
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"order", order_numbers, METH_VARARGS, "order(key, count, numbers, out): places of numbers in an order"},
    {"split_totals", split_totals, METH_VARARGS, "split_totals(documents) -> (documents, tokens) of the split"},
    {"group_starts", group_starts, METH_VARARGS, "group_starts(documents, key, group, out): tokens before each group"},
    {"gather", gather, METH_VARARGS,
     "gather(tokens, type, documents, key, starts, group, window_key, num_windows, numbers, rows, length, out)"},
    {"blend", blend, METH_VARARGS, "blend(weights, counts, first, size, ids, numbers): whose turn each sample is"},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_samples", "Samples of indexed datasets.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__samples() { return PyModule_Create(&module); }
