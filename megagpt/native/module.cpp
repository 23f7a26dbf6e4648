// The extension module megagpt.native._encoder: Model (a SentencePiece model's tables) and Worker (one thread's
// encoder).
//
// Every method that encodes releases the interpreter's lock. A Worker must not be used by two threads at once.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <climits>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <variant>

#include "encoder.h"

namespace {

using megagpt::Core;
using megagpt::JsonString;
using megagpt::LineKind;
using megagpt::MappedPages;

struct ModelObject {
    PyObject_HEAD Core* core;
};

using AnyWorker = std::variant<megagpt::Worker<uint16_t>, megagpt::Worker<int32_t>>;

struct WorkerObject {
    PyObject_HEAD PyObject* model;  // keeps the tables alive
    AnyWorker* worker;
};

// A buffer that a caller passed, given back at the end of the scope.
class Buffer {
  public:
    explicit Buffer(PyObject* object) { held_ = PyObject_GetBuffer(object, &view_, PyBUF_SIMPLE) == 0; }
    ~Buffer() {
        if (held_) PyBuffer_Release(&view_);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    explicit operator bool() const { return held_; }
    std::string_view bytes() const { return {static_cast<const char*>(view_.buf), static_cast<size_t>(view_.len)}; }

  private:
    Py_buffer view_;
    bool held_;
};

// Runs `work`; a C++ exception, which must not get out into the interpreter, becomes a Python one and gives false.
// `release`: without the interpreter's lock.
template <typename Work>
bool guarded(Work work, bool release = false) {
    char problem[256] = "";
    bool done = false, no_memory = false;
    PyThreadState* const thread = release ? PyEval_SaveThread() : nullptr;
    try {
        work();
        done = true;
    } catch (const std::bad_alloc&) {
        no_memory = true;
    } catch (const std::exception& error) {
        std::strncpy(problem, error.what(), sizeof(problem) - 1);
    } catch (...) {
    }
    if (release) PyEval_RestoreThread(thread);
    if (no_memory) PyErr_NoMemory();
    if (!done && !no_memory) PyErr_SetString(PyExc_ValueError, problem[0] == '\0' ? "unknown error" : problem);
    return done;
}

template <typename Work>
bool unlocked(Work work) {
    return guarded(work, true);
}

PyObject* model_new(PyTypeObject* type, PyObject* arguments, PyObject*) {
    PyObject *bytes, *marks;
    if (!PyArg_ParseTuple(arguments, "OO!", &bytes, &PyTuple_Type, &marks)) return nullptr;
    Buffer model(bytes);
    if (!model) return nullptr;
    std::vector<int> mark_ids;
    const Py_ssize_t num_marks = PyTuple_GET_SIZE(marks);
    if (!guarded([&] { mark_ids.reserve(static_cast<size_t>(num_marks)); })) return nullptr;
    for (Py_ssize_t place = 0; place < num_marks; ++place) {
        const long id = PyLong_AsLong(PyTuple_GET_ITEM(marks, place));
        if (id == -1 && PyErr_Occurred() != nullptr) return nullptr;
        if (id < 0 || id > INT_MAX) {
            PyErr_SetString(PyExc_ValueError, "an id is negative or too large");
            return nullptr;
        }
        mark_ids.push_back(static_cast<int>(id));
    }
    std::unique_ptr<Core> core;
    if (!unlocked([&] { core = std::make_unique<Core>(model.bytes(), std::move(mark_ids)); })) return nullptr;
    auto* self = reinterpret_cast<ModelObject*>(type->tp_alloc(type, 0));
    if (self != nullptr) self->core = core.release();
    return reinterpret_cast<PyObject*>(self);
}

void model_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    delete reinterpret_cast<ModelObject*>(self)->core;
    type->tp_free(self);
    Py_DECREF(type);
}

PyType_Slot model_slots[] = {
    {Py_tp_doc, const_cast<char*>("Model(model_bytes, space_mark_ids): tables of a SentencePiece model.")},
    {Py_tp_new, reinterpret_cast<void*>(model_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(model_dealloc)},
    {0, nullptr},
};
PyType_Spec model_spec = {"megagpt.native._encoder.Model", sizeof(ModelObject), 0, Py_TPFLAGS_DEFAULT, model_slots};

AnyWorker& worker_of(PyObject* self) { return *reinterpret_cast<WorkerObject*>(self)->worker; }

PyObject* worker_new(PyTypeObject* type, PyObject* arguments, PyObject*) {
    PyObject* model;
    int eod_id, id_bytes;
    if (!PyArg_ParseTuple(arguments, "Oii", &model, &eod_id, &id_bytes)) return nullptr;
    // A class of that name can be made in Python; one with this function cannot.
    if (Py_TYPE(model)->tp_dealloc != model_dealloc || (id_bytes != 2 && id_bytes != 4)) {
        PyErr_SetString(PyExc_TypeError, "Worker(model: Model, eod_id: int, id_bytes: 2 or 4)");
        return nullptr;
    }
    auto* self = reinterpret_cast<WorkerObject*>(type->tp_alloc(type, 0));
    if (self == nullptr) return nullptr;
    Py_INCREF(model);
    self->model = model;
    const Core& core = *reinterpret_cast<ModelObject*>(model)->core;
    auto make = [&] {
        self->worker = id_bytes == 2 ? new AnyWorker(std::in_place_index<0>, core, eod_id)
                                     : new AnyWorker(std::in_place_index<1>, core, eod_id);
    };
    if (!guarded(make)) Py_CLEAR(self);  // tp_alloc has set `worker` to null
    return reinterpret_cast<PyObject*>(self);
}

void worker_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    auto* object = reinterpret_cast<WorkerObject*>(self);
    delete object->worker;
    Py_XDECREF(object->model);
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject* encode_lines(PyObject* self, PyObject* arguments) {
    PyObject *content, *key;
    Py_ssize_t at;
    if (!PyArg_ParseTuple(arguments, "OnO", &content, &at, &key)) return nullptr;
    Buffer lines(content), name(key);
    if (!lines || !name) return nullptr;
    size_t stopped = 0;
    auto work = [&](auto& worker) {
        stopped = worker.encode_lines(lines.bytes(), static_cast<size_t>(at), name.bytes());
    };
    if (!unlocked([&] { std::visit(work, worker_of(self)); })) return nullptr;
    return PyLong_FromSize_t(stopped);
}

PyObject* encode_texts(PyObject* self, PyObject* arguments) {
    PyObject *data, *places;
    Py_ssize_t first;
    if (!PyArg_ParseTuple(arguments, "OOn", &data, &places, &first)) return nullptr;
    Buffer text(data), offsets(places);
    if (!text || !offsets) return nullptr;
    const auto* starts = reinterpret_cast<const int64_t*>(offsets.bytes().data());
    const size_t count = offsets.bytes().size() / sizeof(int64_t);
    size_t stopped = 0;
    auto work = [&](auto& worker) {
        stopped = worker.encode_texts(text.bytes(), starts, static_cast<size_t>(first), count == 0 ? 0 : count - 1);
    };
    if (!unlocked([&] { std::visit(work, worker_of(self)); })) return nullptr;
    return PyLong_FromSize_t(stopped);
}

PyObject* encode_text(PyObject* self, PyObject* argument) {
    Buffer text(argument);
    if (!text) return nullptr;
    auto work = [&](auto& worker) { worker.encode_text(text.bytes()); };
    if (!unlocked([&] { std::visit(work, worker_of(self)); })) return nullptr;
    Py_RETURN_NONE;
}

PyObject* begin(PyObject* self, PyObject*) {
    std::visit([](auto& worker) { worker.begin(); }, worker_of(self));
    Py_RETURN_NONE;
}

PyObject* push(PyObject* self, PyObject* argument) {
    Buffer text(argument);
    if (!text) return nullptr;
    bool valid = false;
    auto work = [&](auto& worker) { valid = worker.push(text.bytes()); };
    if (!unlocked([&] { std::visit(work, worker_of(self)); })) return nullptr;
    return PyBool_FromLong(valid);
}

PyObject* push_json(PyObject* self, PyObject* arguments) {
    PyObject* part;
    int last;
    if (!PyArg_ParseTuple(arguments, "Op", &part, &last)) return nullptr;
    Buffer raw(part);
    if (!raw) return nullptr;
    size_t used = 0;
    auto work = [&](auto& worker) { used = worker.push_json(raw.bytes(), last != 0); };
    if (!unlocked([&] { std::visit(work, worker_of(self)); })) return nullptr;
    return used == megagpt::kWrongEscape ? PyLong_FromLong(-1) : PyLong_FromSize_t(used);
}

PyObject* finish(PyObject* self, PyObject*) {
    bool whole = false;
    auto work = [&](auto& worker) { whole = worker.finish(); };
    if (!unlocked([&] { std::visit(work, worker_of(self)); })) return nullptr;
    return PyBool_FromLong(whole);
}

PyObject* take_ids(PyObject* self, PyObject*) {
    return std::visit(
        [](auto& worker) {
            const auto* data = reinterpret_cast<const char*>(worker.ids.data());
            PyObject* taken = PyBytes_FromStringAndSize(
                data, static_cast<Py_ssize_t>(worker.ids.size() * sizeof(*worker.ids.data())));
            if (taken != nullptr) {
                worker.taken(worker.ids.size());
                worker.ids.cut(0);
            }
            return taken;
        },
        worker_of(self));
}

PyObject* take(PyObject* self, PyObject*) {
    PyObject* ids = take_ids(self, nullptr);
    if (ids == nullptr) return nullptr;
    return std::visit(
        [&](auto& worker) {
            PyObject* lengths =
                PyBytes_FromStringAndSize(reinterpret_cast<const char*>(worker.lengths.data()),
                                          static_cast<Py_ssize_t>(worker.lengths.size() * sizeof(int64_t)));
            PyObject* taken = Py_BuildValue("NNnn", ids, lengths, static_cast<Py_ssize_t>(worker.text_bytes),
                                            static_cast<Py_ssize_t>(worker.num_characters));
            worker.lengths.clear();
            worker.text_bytes = worker.num_characters = 0;
            return taken;
        },
        worker_of(self));
}

PyMethodDef worker_methods[] = {
    {"encode_lines", encode_lines, METH_VARARGS,
     "encode_lines(content, at, key) -> where it stopped: the end, or the start of a line that Python must judge."},
    {"encode_texts", encode_texts, METH_VARARGS,
     "encode_texts(data, offsets, first) -> number of the first text that is empty or not UTF-8, or their number."},
    {"encode_text", encode_text, METH_O, "encode_text(utf8): one document; invalid bytes become U+FFFD."},
    {"begin", begin, METH_NOARGS, "begin(): start a document that comes in parts."},
    {"push", push, METH_O, "push(utf8) -> whether it is UTF-8."},
    {"push_json", push_json, METH_VARARGS, "push_json(raw, last) -> bytes read, -1 where raw is wrong."},
    {"finish", finish, METH_NOARGS, "finish() -> whether the document ends with a whole character."},
    {"take_ids", take_ids, METH_NOARGS, "take_ids() -> ids so far, little-endian, and forget them."},
    {"take", take, METH_NOARGS, "take() -> (ids, int64 lengths, bytes of text, characters), and forget them."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot worker_slots[] = {
    {Py_tp_doc, const_cast<char*>("Worker(model, eod_id, id_bytes): one thread's encoder.")},
    {Py_tp_new, reinterpret_cast<void*>(worker_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(worker_dealloc)},
    {Py_tp_methods, worker_methods},
    {0, nullptr},
};
PyType_Spec worker_spec = {"megagpt.native._encoder.Worker", sizeof(WorkerObject), 0, Py_TPFLAGS_DEFAULT, worker_slots};

// Whether it is a map of a file or a memoryview of one, so that its pages can be read again. What a bytes object holds
// would be lost.
bool is_mapped(PyObject* content) {
    PyObject* base = PyMemoryView_Check(content) ? PyMemoryView_GET_BASE(content) : content;
    return base != nullptr && std::strcmp(Py_TYPE(base)->tp_name, "mmap.mmap") == 0;
}

// find_text(mapped_line, key) -> (kind, start, stop): 0 text, 1 blank, 2 odd.
PyObject* find_text(PyObject*, PyObject* arguments) {
    PyObject *content, *key;
    if (!PyArg_ParseTuple(arguments, "OO", &content, &key)) return nullptr;
    Buffer line(content), name(key);
    if (!line || !name) return nullptr;
    JsonString found;
    LineKind kind = LineKind::kOdd;
    MappedPages pages(line.bytes().data(), line.bytes().size());
    MappedPages* const given_back = is_mapped(content) ? &pages : nullptr;
    if (!unlocked([&] { kind = megagpt::find_text(line.bytes(), name.bytes(), found, given_back); })) return nullptr;
    const char* begin = kind == LineKind::kText ? found.raw.data() : line.bytes().data();
    const Py_ssize_t start = begin - line.bytes().data();
    const Py_ssize_t size = kind == LineKind::kText ? static_cast<Py_ssize_t>(found.raw.size()) : 0;
    return Py_BuildValue("inn", static_cast<int>(kind), start, start + size);
}

// scan_lines(content, key) -> number of lines with a text: reading JSON alone, for measurements.
PyObject* scan_lines(PyObject*, PyObject* arguments) {
    PyObject *content, *key;
    if (!PyArg_ParseTuple(arguments, "OO", &content, &key)) return nullptr;
    Buffer lines(content), name(key);
    if (!lines || !name) return nullptr;
    Py_ssize_t count = 0;
    auto work = [&] {
        std::string_view rest = lines.bytes();
        while (!rest.empty()) {
            const size_t newline = std::min(rest.find('\n'), rest.size());
            JsonString found;
            count += megagpt::find_text(rest.substr(0, newline), name.bytes(), found) == LineKind::kText ? 1 : 0;
            rest.remove_prefix(std::min(newline + 1, rest.size()));
        }
    };
    if (!unlocked(work)) return nullptr;
    return PyLong_FromSsize_t(count);
}

PyMethodDef module_methods[] = {
    {"find_text", find_text, METH_VARARGS,
     "find_text(mapped_line, key) -> (0 text | 1 blank | 2 odd, start, stop) of the raw JSON string."},
    {"scan_lines", scan_lines, METH_VARARGS, "scan_lines(content, key) -> number of lines with a text."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module_definition = {PyModuleDef_HEAD_INIT,
                                 "_encoder",
                                 "SentencePiece encoding at the speed of the machine.",
                                 -1,
                                 module_methods,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr};

bool add_type(PyObject* module, PyType_Spec& spec, const char* name) {
    PyObject* type = PyType_FromSpec(&spec);
    return type != nullptr && PyModule_AddObject(module, name, type) == 0;
}

}  // namespace

PyMODINIT_FUNC PyInit__encoder() {
    PyObject* module = PyModule_Create(&module_definition);
    if (module == nullptr) return nullptr;
    if (!add_type(module, model_spec, "Model") || !add_type(module, worker_spec, "Worker")) {
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
