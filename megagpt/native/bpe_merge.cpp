// How Bpe merges one segment.
#include <algorithm>
#include <cstring>
#include <queue>
#include <stdexcept>

#include "bpe.h"
#include "bpe_hash.h"

namespace megagpt {
namespace {

constexpr size_t kShort = 32;  // symbols up to which a segment is merged by looking at every pair each time

}  // namespace

// Joins until nothing can be joined; returns how many symbols are left. Quadratic, for short segments.
size_t Bpe::merge_short(uint32_t* symbols, size_t length) const {
    uint32_t joined[kShort];
    for (size_t place = 0; place + 1 < length; ++place) joined[place] = join(symbols[place], symbols[place + 1]);
    while (length > 1) {
        size_t best = 0;
        for (size_t place = 1; place + 1 < length; ++place) {
            if (before(joined[place], joined[best])) best = place;
        }
        if (joined[best] == kNone) break;
        symbols[best] = joined[best];
        --length;
        for (size_t place = best + 1; place < length; ++place) {
            symbols[place] = symbols[place + 1];
            joined[place - 1] = joined[place];
        }
        if (best > 0) joined[best - 1] = join(symbols[best - 1], symbols[best]);
        if (best + 1 < length) joined[best] = join(symbols[best], symbols[best + 1]);
    }
    return length;
}

// The same with a heap: n log n for a run of n symbols.
size_t Bpe::merge_long(uint32_t* symbols, size_t length) const {
    struct Candidate {
        uint32_t joined, left, right, left_symbol, right_symbol;
    };
    if (length >= kNone) throw std::runtime_error("a run of over 4 billion characters without a cut");
    const auto none = static_cast<uint32_t>(length);
    std::vector<uint32_t> previous(length), next(length);
    auto later = [this](const Candidate& one, const Candidate& other) {
        return before(other.joined, one.joined) || (!before(one.joined, other.joined) && one.left > other.left);
    };
    std::vector<Candidate> first;
    for (uint32_t place = 0; place < none; ++place) {
        previous[place] = place == 0 ? none : place - 1;
        next[place] = place + 1;  // the last has `none`
        if (place + 1 == none) continue;
        const uint32_t joined = join(symbols[place], symbols[place + 1]);
        if (joined != kNone) first.push_back({joined, place, place + 1, symbols[place], symbols[place + 1]});
    }
    std::priority_queue<Candidate, std::vector<Candidate>, decltype(later)> queue(later, std::move(first));
    auto offer = [&](uint32_t left, uint32_t right) {
        if (left == none || right == none) return;
        const uint32_t joined = join(symbols[left], symbols[right]);
        if (joined != kNone) queue.push({joined, left, right, symbols[left], symbols[right]});
    };
    while (!queue.empty()) {
        const Candidate top = queue.top();
        queue.pop();
        if (symbols[top.left] != top.left_symbol || symbols[top.right] != top.right_symbol) continue;
        if (next[top.left] != top.right) continue;
        symbols[top.left] = top.joined;
        symbols[top.right] = kNone;
        next[top.left] = next[top.right];
        if (next[top.left] != none) previous[next[top.left]] = top.left;
        offer(previous[top.left], top.left);
        offer(top.left, next[top.left]);
    }
    size_t left = 0;
    for (uint32_t place = 0; place != none; place = next[place]) symbols[left++] = symbols[place];
    return left;
}

// Merges a segment, by memory where it can; returns how many symbols are left.
size_t Bpe::merge(uint32_t* symbols, size_t length, State& state) const {
    if (length > kRemembered) return length <= kShort ? merge_short(symbols, length) : merge_long(symbols, length);
    uint64_t hash = length;
    for (size_t place = 0; place < length; ++place) hash = (hash ^ symbols[place]) * 0x9E3779B97F4A7C15u;
    State::Remembered& entry = state.remembered[hash >> (64 - kRememberedBits)];
    const size_t bytes = length * sizeof(uint32_t);
    if (entry.length == length && std::memcmp(entry.symbols, symbols, bytes) == 0) {
        std::memcpy(symbols, entry.left, entry.num_left * sizeof(uint32_t));
        return entry.num_left;
    }
    uint32_t before[kRemembered];
    std::memcpy(before, symbols, bytes);
    const size_t num_left = merge_short(symbols, length);
    if (num_left <= kRememberedLeft) {
        entry.length = static_cast<uint32_t>(length);
        entry.num_left = static_cast<uint32_t>(num_left);
        std::memcpy(entry.symbols, before, bytes);
        std::memcpy(entry.left, symbols, num_left * sizeof(uint32_t));
    }
    return num_left;
}

}  // namespace megagpt
