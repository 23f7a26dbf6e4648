// Documents of one split in the order of an epoch, where their tokens begin, and the tokens of samples.
//
// Nothing here knows Python. What each function means is said in megagpt/data/index_numpy.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "samples_order.h"

namespace megagpt {

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

// How many documents and tokens the split has.
struct Totals {
    i64 documents = 0, tokens = 0;
};

inline Totals count_split(const Documents& documents) {
    Totals totals;
    for (i64 document = 0; document < documents.count; ++document) {
        const i64 inside = documents.belongs(document);
        totals.documents += inside;
        totals.tokens += inside * documents.tokens_of(document);
    }
    return totals;
}

// starts[g] = tokens before place g * group of the order; starts[num_groups], all of them.
inline void fill_starts(const Documents& documents, const Order& order, i64 group, i64 num_groups, i64* starts) {
    i64 numbers[Order::kMany];
    i64 tokens = 0;
    for (i64 first = 0; first < documents.count; first += Order::kMany) {
        const i64 size = std::min(Order::kMany, documents.count - first);
        order.at_many(first, size, numbers);
        for (i64 i = 0; i < size; ++i) documents.prefetch(numbers[i]);
        for (i64 i = 0; i < size; ++i) {
            if ((first + i) % group == 0) starts[(first + i) / group] = tokens;
            if (documents.belongs(numbers[i])) tokens += documents.tokens_of(numbers[i]);
        }
    }
    starts[num_groups] = tokens;
}

// The index of an epoch as it was made by fill_starts.
struct Epoch {
    const Documents& documents;
    const Order& order;    // of documents
    const Order& windows;  // of windows
    const i64* starts;
    i64 num_groups, group, num_windows;
};

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

inline Copy copy_of(const char* type) {
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
inline bool find_segments(const Epoch& epoch, i64 start, i64 wanted, i64* to, std::vector<Segment>& found) {
    const Documents& documents = epoch.documents;
    const i64 *starts = epoch.starts, num_groups = epoch.num_groups, group = epoch.group;
    i64 at = std::upper_bound(starts, starts + num_groups + 1, start) - starts - 1;
    if (at < 0) return false;
    i64 numbers[kMaxGroup];
    for (; wanted > 0; ++at) {
        if (at >= num_groups) return false;
        i64 place = starts[at];
        if (starts[at + 1] == place) continue;  // no document of the group is in the split
        const i64 size = std::min(group, documents.count - at * group);
        epoch.order.at_many(at * group, size, numbers);
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

// Samples to read: out[row[i]] becomes the length + 1 tokens of sample number[i].
struct Reading {
    const char* tokens;
    Copy copy;
    i64 count;
    const i64 *number, *row;
    i64 num_rows, length;
    i64* out;
};

// Copy the segments in order; the beginnings of those that follow are fetched meanwhile.
inline void copy_segments(const Reading& reading, i64 item_bytes, const std::vector<Segment>& segments) {
    constexpr std::size_t kAhead = 4;
    for (std::size_t s = 0; s < segments.size(); ++s) {
        if (s + kAhead < segments.size()) {
            const Segment& later = segments[s + kAhead];
            const char* line = reading.tokens + later.byte;
            const char* end = std::min(line + later.length * item_bytes, line + 512);
            for (; line < end; line += 64) __builtin_prefetch(line);
        }
        reading.copy(reading.tokens + segments[s].byte, segments[s].length, segments[s].to);
    }
}

// Null, or what is wrong.
inline const char* read_samples(const Epoch& epoch, const Reading& reading) {
    constexpr i64 kBlock = 16;  // samples whose tokens are fetched while the next are looked up
    const i64 width = reading.length + 1;
    std::vector<Segment> segments;
    for (i64 first = 0; first < reading.count; first += kBlock) {
        segments.clear();
        for (i64 i = first; i < std::min(first + kBlock, reading.count); ++i) {
            const i64 number = reading.number[i], row = reading.row[i];
            if (number < 0 || number >= epoch.num_windows || row < 0 || row >= reading.num_rows)
                return "a sample or row does not exist";
            const i64 window = static_cast<i64>(epoch.windows.at(static_cast<u64>(number)));
            const std::size_t before = segments.size();
            if (!find_segments(epoch, window * reading.length, width, reading.out + row * width, segments))
                return "the index does not belong to the dataset";
            for (std::size_t s = before; s < segments.size(); ++s)
                __builtin_prefetch(reading.tokens + segments[s].byte);
        }
        copy_segments(reading, epoch.documents.item_bytes, segments);
    }
    return nullptr;
}

}  // namespace megagpt
