// The hashed lookups of Bpe's two tables, inlined into its loops.
#pragma once

#include "bpe.h"

namespace megagpt {

inline uint64_t scatter(uint32_t left, uint32_t right) {
    return (static_cast<uint64_t>(left) << 21 | right) * 0x9E3779B97F4A7C15u;
}

inline uint32_t Bpe::symbol_of(uint32_t code_point) const {
    if (code_point < 0x800) return low_characters_[code_point];
    if (code_point < 0x10000) return basic_plane_[code_point];
    const auto found = other_planes_.find(code_point);
    return found == other_planes_.end() ? kUnknown | code_point : found->second;
}

// Two bits of one word.
inline uint64_t neighbour_bits(uint64_t hash) {
    return uint64_t{1} << (hash >> 26 & 63) | uint64_t{1} << (hash >> 32 & 63);
}

inline void Bpe::allow_neighbours(uint32_t left, uint32_t right) {
    const uint64_t hash = scatter(left, right);
    neighbours_[hash >> neighbours_shift_] |= neighbour_bits(hash);
}

inline bool Bpe::neighbours(uint32_t left, uint32_t right) const {
    const uint64_t hash = scatter(left, right);
    return (~neighbours_[hash >> neighbours_shift_] & neighbour_bits(hash)) == 0;
}

// Entries lie in the first free place from the one that the hash gives; behind the last such place there are some more.
inline void Bpe::insert_pair(uint32_t left, uint32_t right, uint32_t joined) {
    uint64_t place = scatter(left, right) >> pairs_shift_;
    while (pairs_[place] != kEmpty) ++place;
    if (place + 2 >= pairs_.size()) pairs_.resize(place + 3, kEmpty);
    pairs_[place] = (static_cast<uint64_t>(left) << 21 | right) << 22 | joined;
}

inline uint32_t Bpe::join(uint32_t left, uint32_t right) const {
    const uint64_t key = static_cast<uint64_t>(left) << 21 | right;
    const uint64_t* entry = &pairs_[scatter(left, right) >> pairs_shift_];
    auto joined = [](uint64_t found) { return static_cast<uint32_t>(found & ((1u << 22) - 1)); };
    // Nearly every lookup ends with one of two entries, and no branch is taken to tell which.
    const bool is_first = entry[0] >> 22 == key, is_second = entry[1] >> 22 == key;
    const uint32_t result = is_first ? joined(entry[0]) : is_second ? joined(entry[1]) : kNone;
    const bool ends = is_first | is_second | (entry[0] == kEmpty) | (entry[1] == kEmpty);
    if (__builtin_expect(ends, 1)) return result;
    for (entry += 2; *entry != kEmpty; ++entry) {
        if (*entry >> 22 == key) return joined(*entry);
    }
    return kNone;
}

// Whether `one` is joined before `other`, given two joined symbols or kNone; false where they are equal.
inline bool Bpe::before(uint32_t one, uint32_t other) const {
    if (rank_.empty() || one == kNone || other == kNone) return one < other;
    return rank_[one] < rank_[other];
}

}  // namespace megagpt
