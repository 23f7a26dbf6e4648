// Serving samples: the order of documents, the places of an epoch's tokens, the gathering of samples, the order of a
// blend. In: memory-mapped arrays of an indexed dataset. Out: numbers written into the caller's arrays. The module is
// megagpt.native._samples; megagpt/data/index_numpy.py says what each function means and gives the same results.
// All numbers are 64-bit. The GIL is released while a function works.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using i64 = std::int64_t;
using u64 = std::uint64_t;

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
    template <typename T>
    i64 count() const {
        return static_cast<i64>(view.len / static_cast<Py_ssize_t>(sizeof(T)));
    }
};

// One function compiled for several processors, the best of which is chosen when the module is loaded.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

constexpr int kRounds = 6;

// The rounds of Order on words of at most 32 bits, several at a time.
FOR_EACH_PROCESSOR void mix_many(std::uint32_t* words, i64 size, const std::uint32_t* add,
                                 const std::uint32_t* multiply, std::uint32_t mask, int shift) {
    for (i64 i = 0; i < size; ++i) {
        std::uint32_t x = words[i];
        for (int round = 0; round < kRounds; ++round) {
            x = ((x + add[round]) * multiply[round]) & mask;
            x ^= x >> shift;
        }
        words[i] = x;
    }
}

// A permutation of 0 … count-1 that needs no table: rounds of add, multiply, xor-shift on words of `bits` bits, applied
// again while the result is not below count. See megagpt/data/index_order.py for the definition.
struct Order {
    static constexpr int kMinBits = 8;
    static constexpr i64 kMany = 256;
    u64 add[kRounds]{}, multiply[kRounds]{};
    std::uint32_t add32[kRounds]{}, multiply32[kRounds]{};  // arithmetic modulo 2^bits needs no more, up to 32 bits
    u64 count = 0, mask = 0;
    int shift = 0;
    bool identity = true;

    bool set(const Buffer& key, i64 numbers) {
        count = static_cast<u64>(numbers);
        if (!key.given()) return true;
        if (key.view.len != 2 * kRounds * 8) return false;
        u64 words[2 * kRounds];
        std::memcpy(words, key.view.buf, sizeof words);
        for (int round = 0; round < kRounds; ++round) {
            add[round] = words[2 * round];
            multiply[round] = words[2 * round + 1] | 1;
            add32[round] = static_cast<std::uint32_t>(add[round]);
            multiply32[round] = static_cast<std::uint32_t>(multiply[round]);
        }
        int bits = kMinBits;
        while (bits < 63 && (u64{1} << bits) < count) ++bits;
        mask = (u64{1} << bits) - 1;
        shift = (bits + 1) / 2;
        identity = false;
        return true;
    }

    u64 at(u64 x) const {
        if (identity) return x;
        do {
            for (int round = 0; round < kRounds; ++round) {
                x = ((x + add[round]) * multiply[round]) & mask;
                x ^= x >> shift;
            }
        } while (x >= count);
        return x;
    }

    // places first … first + size - 1, at most kMany
    void at_many(i64 first, i64 size, i64* out) const {
        if (identity || mask > UINT32_MAX) {
            for (i64 i = 0; i < size; ++i) out[i] = static_cast<i64>(at(static_cast<u64>(first + i)));
            return;
        }
        std::uint32_t words[kMany];
        i64 todo[kMany];
        for (i64 i = 0; i < size; ++i) {
            words[i] = static_cast<std::uint32_t>(first + i);
            todo[i] = i;
        }
        for (i64 left = size; left > 0;) {
            mix_many(words, left, add32, multiply32, static_cast<std::uint32_t>(mask), shift);
            i64 again = 0;
            for (i64 i = 0; i < left; ++i) {  // without branches: which words are beyond cannot be foreseen
                const std::uint32_t word = words[i];
                const i64 place = todo[i];
                out[place] = word;
                words[again] = word;
                todo[again] = place;
                again += word >= count;
            }
            left = again;
        }
    }
};

// An array within a mapped .idx, where numbers lie at any address.
template <typename T>
struct Unaligned {
    const char* bytes = nullptr;
    T operator[](i64 index) const {
        T value;
        std::memcpy(&value, bytes + index * static_cast<i64>(sizeof(T)), sizeof(T));
        return value;
    }
    void prefetch(i64 index) const { __builtin_prefetch(bytes + index * static_cast<i64>(sizeof(T))); }
};

// The documents of a dataset that belong to one split.
struct Documents {
    Unaligned<std::int32_t> lengths;  // tokens of each sequence
    Unaligned<i64> pointers;          // byte offset of each sequence
    Unaligned<i64> bounds;            // first sequence of each document; without: every document is one sequence
    i64 num_sequences, count, item_bytes, end_bytes;
    u64 low, high;  // a document belongs to the split where low <= its place < high
    bool all;

    i64 begin_byte(i64 document) const {
        const i64 sequence = bounds.bytes ? bounds[document] : document;
        return sequence < num_sequences ? pointers[sequence] : end_bytes;
    }
    i64 tokens_of(i64 document) const {
        if (!bounds.bytes) return lengths[document];
        return (begin_byte(document + 1) - begin_byte(document)) / item_bytes;
    }
    // splitmix64 of the document's number, its upper 53 bits: megagpt/data/splits.py
    static u64 place(i64 document) {
        u64 x = u64{0x6D65676167707431} + (static_cast<u64>(document) + 1) * u64{0x9E3779B97F4A7C15};
        x = (x ^ (x >> 30)) * u64{0xBF58476D1CE4E5B9};
        x = (x ^ (x >> 27)) * u64{0x94D049BB133111EB};
        return (x ^ (x >> 31)) >> 11;
    }
    bool belongs(i64 document) const {
        if (all) return true;
        const u64 at = place(document);
        return low <= at && at < high;
    }
    void prefetch(i64 document) const {
        if (bounds.bytes)
            bounds.prefetch(document);
        else
            lengths.prefetch(document);
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
    if (!order.set(key, count) || out.count<i64>() != n)
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
    const Documents& documents = argument.value;
    i64 num_documents = 0, num_tokens = 0;
    Py_BEGIN_ALLOW_THREADS;
    for (i64 document = 0; document < documents.count; ++document) {
        const i64 inside = documents.belongs(document);
        num_documents += inside;
        num_tokens += inside * documents.tokens_of(document);
    }
    Py_END_ALLOW_THREADS;
    return Py_BuildValue("LL", static_cast<long long>(num_documents), static_cast<long long>(num_tokens));
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
    if (!order.set(key, documents.count) || out.count<i64>() != num_groups + 1)
        return PyErr_Format(PyExc_ValueError, "group_starts: the key or the size of out is wrong");
    i64* starts = out.data<i64>();
    Py_BEGIN_ALLOW_THREADS;
    constexpr i64 kBlock = Order::kMany;
    i64 numbers[kBlock];
    i64 tokens = 0;
    for (i64 first = 0; first < documents.count; first += kBlock) {
        const i64 size = std::min(kBlock, documents.count - first);
        order.at_many(first, size, numbers);
        for (i64 i = 0; i < size; ++i) documents.prefetch(numbers[i]);
        for (i64 i = 0; i < size; ++i) {
            if ((first + i) % group == 0) starts[(first + i) / group] = tokens;
            if (documents.belongs(numbers[i])) tokens += documents.tokens_of(numbers[i]);
        }
    }
    starts[num_groups] = tokens;
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

constexpr i64 kMaxGroup = Order::kMany;

struct Segment {
    i64 byte, length;
    i64* to;
};

template <typename Token>
void copy_tokens(const char* from, i64 length, i64* to) {
    const Token* tokens = reinterpret_cast<const Token*>(from);
    for (i64 i = 0; i < length; ++i) to[i] = static_cast<i64>(tokens[i]);
}

using Copy = void (*)(const char*, i64, i64*);

Copy copy_of(const char* type) {
    const char name[3] = {type[0], type[0] != 0 ? type[1] : '\0', '\0'};
    if (!std::strcmp(name, "u1")) return copy_tokens<std::uint8_t>;
    if (!std::strcmp(name, "i1")) return copy_tokens<std::int8_t>;
    if (!std::strcmp(name, "u2")) return copy_tokens<std::uint16_t>;
    if (!std::strcmp(name, "i2")) return copy_tokens<std::int16_t>;
    if (!std::strcmp(name, "i4")) return copy_tokens<std::int32_t>;
    if (!std::strcmp(name, "i8")) return copy_tokens<i64>;
    return nullptr;
}

// Where the `wanted` tokens from place `start` of an epoch lie; false where the epoch ends before, which only an index
// that belongs to another dataset can cause.
bool find_segments(const Documents& documents, const Order& order, const i64* starts, i64 num_groups, i64 group,
                   i64 start, i64 wanted, i64* to, std::vector<Segment>& found) {
    i64 at = std::upper_bound(starts, starts + num_groups + 1, start) - starts - 1;
    if (at < 0) return false;
    i64 numbers[kMaxGroup];
    for (; wanted > 0; ++at) {
        if (at >= num_groups) return false;
        i64 place = starts[at];
        if (starts[at + 1] == place) continue;  // no document of the group is in the split
        const i64 size = std::min(group, documents.count - at * group);
        order.at_many(at * group, size, numbers);
        for (i64 i = 0; i < size; ++i) documents.prefetch(numbers[i]);
        for (i64 i = 0; i < size && wanted > 0; ++i) {
            if (!documents.belongs(numbers[i])) continue;
            const i64 length = documents.tokens_of(numbers[i]);
            if (place + length > start) {
                const i64 skip = start - place;
                const i64 taken = std::min(length - skip, wanted);
                const i64 byte = documents.begin_byte(numbers[i]) + skip * documents.item_bytes;
                if (skip < 0 || byte < 0 || byte + taken * documents.item_bytes > documents.end_bytes) return false;
                found.push_back({byte, taken, to});
                to += taken;
                wanted -= taken;
                start += taken;
            }
            place += length;
        }
    }
    return true;
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
    Order order, window_order;
    const Copy copy = copy_of(type);
    const i64 n = numbers.count<i64>(), width = length + 1;
    const i64 num_groups = starts.count<i64>() - 1;
    const i64 num_rows = length > 0 ? out.count<i64>() / width : 0;
    if (!order.set(key, documents.count) || !window_order.set(window_key, num_windows) || copy == nullptr ||
        length < 1 || group < 1 || group > kMaxGroup || num_groups != (documents.count + group - 1) / group || rows.count<i64>() != n ||
        tokens.view.len < documents.end_bytes || num_rows * width != out.count<i64>())
        return PyErr_Format(PyExc_ValueError, "gather: the arguments do not fit together");
    const char* from = tokens.data<char>();
    const i64 *number = numbers.data<i64>(), *row = rows.data<i64>();
    i64* to = out.data<i64>();
    const char* wrong = nullptr;
    Py_BEGIN_ALLOW_THREADS;
    constexpr i64 kBlock = 16;  // samples whose tokens are fetched while the next are looked up
    constexpr i64 kAhead = 4;
    std::vector<Segment> segments;
    for (i64 first = 0; first < n && wrong == nullptr; first += kBlock) {
        segments.clear();
        for (i64 i = first; i < std::min(first + kBlock, n) && wrong == nullptr; ++i) {
            if (number[i] < 0 || number[i] >= num_windows || row[i] < 0 || row[i] >= num_rows) {
                wrong = "a sample or row does not exist";
                break;
            }
            const i64 window = static_cast<i64>(window_order.at(static_cast<u64>(number[i])));
            const std::size_t before = segments.size();
            if (!find_segments(documents, order, starts.data<i64>(), num_groups, group, window * length, width,
                               to + row[i] * width, segments))
                wrong = "the index does not belong to the dataset";
            for (std::size_t s = before; s < segments.size(); ++s) __builtin_prefetch(from + segments[s].byte);
        }
        if (wrong != nullptr) break;
        const i64 count = static_cast<i64>(segments.size());
        for (i64 s = 0; s < count; ++s) {
            if (s + kAhead < count) {
                const Segment& later = segments[static_cast<std::size_t>(s + kAhead)];
                const char* line = from + later.byte;
                const char* end = std::min(line + later.length * documents.item_bytes, line + 512);
                for (; line < end; line += 64) __builtin_prefetch(line);
            }
            const Segment& segment = segments[static_cast<std::size_t>(s)];
            copy(from + segment.byte, segment.length, segment.to);
        }
    }
    Py_END_ALLOW_THREADS;
    if (wrong != nullptr) return PyErr_Format(PyExc_ValueError, "gather: %s", wrong);
    Py_RETURN_NONE;
}

// One corpus of a blend: its next sample may be taken from `release` on and must be before `deadline`.
struct Turn {
    i64 release, deadline, floor, rest, weight, quotient, remainder;

    // `taken` samples are behind it: floor and rest of taken * total / weight, then the window of the next
    void set(i64 taken, i64 total, i64 own_weight) {
        weight = own_weight;
        quotient = total / weight;
        remainder = total % weight;
        const __int128 product = static_cast<__int128>(taken) * total;
        floor = static_cast<i64>(product / weight);
        rest = static_cast<i64>(product % weight);
        advance();
    }
    void advance() {
        release = floor;
        floor += quotient;
        rest += remainder;
        if (rest >= weight) {
            rest -= weight;
            ++floor;
        }
        deadline = floor + (rest > 0);
    }
};

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
    i64* taken = counts.data<i64>();
    bool served = true;
    Py_BEGIN_ALLOW_THREADS;
    std::vector<Turn> turns(static_cast<std::size_t>(k));
    for (i64 i = 0; i < k; ++i) turns[static_cast<std::size_t>(i)].set(taken[i], total, weights.data<i64>()[i]);
    for (i64 place = first; place < first + size; ++place) {
        i64 chosen = -1, soonest = INT64_MAX;
        for (i64 i = 0; i < k; ++i) {
            const Turn& turn = turns[static_cast<std::size_t>(i)];
            if (turn.release <= place && turn.deadline < soonest) {
                chosen = i;
                soonest = turn.deadline;
            }
        }
        if (chosen < 0 || soonest <= place) {  // cannot be: docs/blends.md has the proof
            served = false;
            break;
        }
        if (ids.given()) {
            ids.data<std::uint16_t>()[place - first] = static_cast<std::uint16_t>(chosen);
            numbers.data<i64>()[place - first] = taken[chosen];
        }
        ++taken[chosen];
        turns[static_cast<std::size_t>(chosen)].advance();
    }
    Py_END_ALLOW_THREADS;
    if (!served) return PyErr_Format(PyExc_ValueError, "blend: the counts are not those of these weights");
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

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_samples", "Samples of indexed datasets.", -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__samples() { return PyModule_Create(&module); }
