#include "bpe.h"

#include <algorithm>
#include <cstring>
#include <queue>
#include <stdexcept>

#include "bpe_hash.h"
#include "utf8.h"

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

// Merges the first `length` symbols of the segment, by memory where it can.
size_t Bpe::merge(State& state, size_t length) const {
    uint32_t* symbols = state.segment.data();
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

template <typename Id>
inline void Bpe::put_unknown(uint32_t code_point, State& state, IdBuffer<Id>& ids) const {
    if (!byte_fallback_) {
        if (!state.after_unknown) ids.put(unknown_id_);  // a run of unknown characters is one token
        state.after_unknown = true;
        return;
    }
    if (code_point < 0x80) {
        ids.put(byte_ids_[code_point]);
    } else if (code_point < 0x800) {
        ids.put(byte_ids_[0xC0 | code_point >> 6]);
        ids.put(byte_ids_[0x80 | (code_point & 0x3F)]);
    } else if (code_point < 0x10000) {
        ids.put(byte_ids_[0xE0 | code_point >> 12]);
        ids.put(byte_ids_[0x80 | (code_point >> 6 & 0x3F)]);
        ids.put(byte_ids_[0x80 | (code_point & 0x3F)]);
    } else {
        ids.put(byte_ids_[0xF0 | code_point >> 18]);
        ids.put(byte_ids_[0x80 | (code_point >> 12 & 0x3F)]);
        ids.put(byte_ids_[0x80 | (code_point >> 6 & 0x3F)]);
        ids.put(byte_ids_[0x80 | (code_point & 0x3F)]);
    }
}

template <typename Id>
inline void Bpe::put(uint32_t symbol, State& state, IdBuffer<Id>& ids) const {
    const int id = id_of_symbol_[symbol];
    if (id < 0) return put_unknown(character_of_symbol_[symbol], state, ids);
    ids.put(id);
    state.after_unknown = false;
}

template <typename Id>
inline void Bpe::flush(State& state, IdBuffer<Id>& ids) const {
    uint32_t* symbols = state.segment.data();
    size_t length = state.length;
    state.length = 0;
    if (length == 1) return put(symbols[0], state, ids);
    if (length == 2) {
        const uint32_t joined = join(symbols[0], symbols[1]);
        if (joined != kNone) return put(joined, state, ids);
    } else if (length > 2) {
        length = merge(state, length);
    }
    for (size_t place = 0; place < length; ++place) put(symbols[place], state, ids);
}

// A character of `length` bytes with a mark, which stands by itself.
template <typename Id>
inline void Bpe::put_mark(uint32_t mark, State& state, IdBuffer<Id>& ids) const {
    if ((mark & kUnknown) != 0) return put_unknown(mark & ~kUnknown, state, ids);
    state.after_unknown = false;
    if (mark == kSpaceMark) {
        for (int id : space_mark_ids_) ids.put(id);
    } else {
        ids.put(static_cast<int>(mark & ~kKnown));
    }
}

// The longest user-defined symbol of `start` that `rest` begins with, or none.
const Bpe::UserSymbol* Bpe::match(const Start& start, std::string_view rest) {
    for (const UserSymbol& symbol : start.symbols) {
        if (rest.substr(0, symbol.text.size()) == symbol.text) return &symbol;
    }
    return nullptr;
}

template <typename Id>
size_t Bpe::encode(std::string_view text, bool last, State& state, IdBuffer<Id>& ids) const {
    if (state.segment.size() < state.length + text.size() + 1) state.segment.resize(state.length + text.size() + 1);
    const auto* begin = reinterpret_cast<const unsigned char*>(text.data());
    const auto* end = begin + text.size();
    const unsigned char* at = begin;
    const uint32_t* plane = basic_plane_.data();
    uint32_t* segment = state.segment.data();
    while (at < end) {
        uint32_t symbol;
        size_t length = 1;
        if (at[0] < 0x80) {
            symbol = plane[at[0]];
        } else if (at[0] >= 0xE0 && at[0] < 0xF0 && (at[1] & 0xC0) == 0x80 && (at[2] & 0xC0) == 0x80) {
            const uint32_t character = (at[0] & 0x0Fu) << 12 | (at[1] & 0x3Fu) << 6 | (at[2] & 0x3Fu);
            if (character < 0x800 || (character >= 0xD800 && character < 0xE000)) return kInvalid;
            symbol = plane[character];
            length = 3;
        } else {
            const std::string_view rest(reinterpret_cast<const char*>(at), static_cast<size_t>(end - at));
            length = valid_length(rest);
            if (length == 0) {
                if (!last && rest.size() < announced_length(rest[0])) break;
                return kInvalid;
            }
            symbol = symbol_of(code_point(rest.data(), length));
        }
        if ((symbol & kMarkKind) == kSymbolStart) {
            const std::string_view rest(reinterpret_cast<const char*>(at), static_cast<size_t>(end - at));
            if (!last && rest.size() < longest_user_symbol_) break;
            const Start& start = starts_[symbol & ~kSymbolStart];
            if (const UserSymbol* found = match(start, rest); found != nullptr) {
                flush(state, ids);
                ids.put(found->id);
                state.after_unknown = false;
                at += found->text.size();
                continue;
            }
            symbol = start.otherwise;
        }
        if (symbol < kMarks) {
            if (state.length > 0 && !neighbours(segment[state.length - 1], symbol)) flush(state, ids);
            segment[state.length++] = symbol;
        } else {
            flush(state, ids);
            put_mark(symbol, state, ids);
        }
        at += length;
    }
    if (last) flush(state, ids);
    return static_cast<size_t>(at - begin);
}

template size_t Bpe::encode<uint16_t>(std::string_view, bool, State&, IdBuffer<uint16_t>&) const;
template size_t Bpe::encode<int32_t>(std::string_view, bool, State&, IdBuffer<int32_t>&) const;

}  // namespace megagpt
