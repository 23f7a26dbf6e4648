// The hashed lookups of Bpe's two tables, inlined into its loops.
#pragma once

#include "bpe.h"

namespace megagpt {

inline uint64_t scatter(uint32_t left, uint32_t right) {
    return (static_cast<uint64_t>(left) << 21 | right) * 0x9E3779B97F4A7C15u;
}

inline uint32_t Bpe::symbol_of(uint32_t code_point) const {
    if (code_point < (1u << 16)) return basic_plane_[code_point];
    const auto found = other_planes_.find(code_point);
    return found == other_planes_.end() ? kUnknown | code_point : found->second;
}

inline void Bpe::allow_neighbours(uint32_t left, uint32_t right) {
    const uint64_t place = scatter(left, right) >> neighbours_shift_;
    neighbours_[place >> 6] |= uint64_t{1} << (place & 63);
}

inline bool Bpe::neighbours(uint32_t left, uint32_t right) const {
    const uint64_t place = scatter(left, right) >> neighbours_shift_;
    return (neighbours_[place >> 6] >> (place & 63) & 1) != 0;
}

inline void Bpe::insert_pair(uint32_t left, uint32_t right, uint32_t joined) {
    uint64_t place = scatter(left, right) >> pairs_shift_;
    while (pairs_[place] != ~uint64_t{0}) place = (place + 1) & (pairs_.size() - 1);
    pairs_[place] = (static_cast<uint64_t>(left) << 21 | right) << 22 | joined;
}

inline uint32_t Bpe::join(uint32_t left, uint32_t right) const {
    const uint64_t key = static_cast<uint64_t>(left) << 21 | right;
    uint64_t place = scatter(left, right) >> pairs_shift_;
    while (true) {
        const uint64_t entry = pairs_[place];
        if (entry >> 22 == key) return static_cast<uint32_t>(entry & ((1u << 22) - 1));
        if (entry == ~uint64_t{0}) return kNone;
        place = (place + 1) & (pairs_.size() - 1);
    }
}

// Whether `one` is joined before `other`, given two joined symbols or kNone; false where they are equal.
inline bool Bpe::before(uint32_t one, uint32_t other) const {
    if (rank_.empty() || one == kNone || other == kNone) return one < other;
    return rank_[one] < rank_[other];
}

}  // namespace megagpt
