#include "bpe.h"

#include <algorithm>
#include <cstring>

#include "bpe_hash.h"
#include "utf8.h"

namespace megagpt {
namespace {

constexpr size_t kBlockBytes = 4096;     // of text, read at once
constexpr size_t kEnoughSymbols = 2048;  // to give out; they stay in the nearest cache
constexpr uint64_t kAll = ~uint64_t{0};

int first_bit(uint64_t bits) { return __builtin_ctzll(bits); }

// How many bits from `place` on are set, one after the other; a bit that is not set must follow.
size_t run_length(const uint64_t* bits, size_t place) {
    size_t word = place / 64;
    const uint64_t rest = ~bits[word] >> place % 64;
    if (rest != 0) return static_cast<size_t>(first_bit(rest));
    size_t length = 64 - place % 64;
    for (++word; bits[word] == kAll; ++word) length += 64;
    return length + static_cast<size_t>(first_bit(~bits[word]));
}

}  // namespace

void Bpe::State::make_room(size_t num_symbols) {
    const size_t num_words = num_symbols / 64 + 2;
    if (joins.size() >= num_words) return;
    joins.resize(num_words * 3 / 2);
    symbols.resize(joins.size() * 64 + 1);  // whole words are looked up
}

void Bpe::State::reset(size_t begin) {
    length = num_open = document_begin = 0;
    after_unknown = false;
    ends.assign(1, begin);
}

// A character that is neither ASCII nor three bytes, or at which a user-defined symbol can begin. Returns what follows
// it: `at` where more text is needed to tell, nullptr where the text is not UTF-8.
const char* Bpe::read_rare(const char* at, const char* end, bool last, uint32_t& symbol) const {
    const std::string_view rest(at, static_cast<size_t>(end - at));
    const size_t length = valid_length(rest);
    if (length == 0) return !last && rest.size() < announced_length(rest[0]) ? at : nullptr;
    symbol = symbol_of(code_point(at, length));
    if (symbol < kSymbolStart) return at + length;
    if (!last && rest.size() < longest_user_symbol_) return at;
    const Start& start = starts_[symbol & ~kSymbolStart];
    const UserSymbol* found = match(start, rest);
    symbol = found == nullptr ? start.otherwise : kAlone | static_cast<uint32_t>(found->id);
    return at + (found == nullptr ? length : found->text.size());
}

// The longest user-defined symbol of `start` that `rest` begins with, or none.
const Bpe::UserSymbol* Bpe::match(const Start& start, std::string_view rest) {
    for (const UserSymbol& symbol : start.symbols) {
        if (rest.substr(0, symbol.text.size()) == symbol.text) return &symbol;
    }
    return nullptr;
}

// Adds the symbols of the characters that begin before `stop`. Returns what is to be read next, before `stop` only
// where more text is needed, or nullptr where the text is not UTF-8.
const char* Bpe::read_symbols(const char* at, const char* stop, const char* end, bool last, State& state) const {
    const uint32_t* const low = low_characters_.data();
    const uint32_t* const plane = basic_plane_.data();
    uint32_t* next = state.symbols.data() + state.length;
    while (at < stop) {
        const auto lead = static_cast<unsigned char>(*at);
        uint32_t bytes = 0;
        if (end - at >= 3) std::memcpy(&bytes, at, 4);  // the byte after the text can be read
        if (lead < 0x80 && low[lead] < kSymbolStart) {
            *next++ = low[lead];
            at += 1;
            continue;
        }
        if ((bytes & 0xC0C0F0) == 0x8080E0) {
            const uint32_t symbol = plane[(bytes & 0xF) << 12 | (bytes >> 2 & 0xFC0) | (bytes >> 16 & 0x3F)];
            if (symbol < kSymbolStart) {
                *next++ = symbol;
                at += 3;
                continue;
            }
        }
        const char* after = read_rare(at, end, last, *next);
        if (after == nullptr) return nullptr;
        if (after == at) break;
        at = after;
        ++next;
    }
    state.length = static_cast<size_t>(next - state.symbols.data());
    return at;
}

// Sets `joins` for the symbols read and returns how many belong to complete segments; those after them have no bits
// set.
size_t Bpe::find_segments(bool last, State& state) const {
    const uint32_t* symbols = state.symbols.data();
    uint64_t* joins = state.joins.data();
    const size_t length = state.length, num_open = state.num_open;
    // No branches: what is looked up for many pairs is under way at once.
    for (size_t begin = (num_open > 0 ? num_open - 1 : 0) / 64 * 64; begin < length; begin += 64) {
        uint64_t bits = 0;
        for (size_t place = begin; place < begin + 64; ++place) {
            const uint32_t left = symbols[place], right = symbols[place + 1];
            const bool unmarked = (left | right) < kAlone;
            bits = bits >> 1 | static_cast<uint64_t>(unmarked & neighbours(left, right)) << 63;
        }
        joins[begin / 64] = bits;
    }
    const size_t end = length - 1;
    joins[end / 64] &= (uint64_t{1} << end % 64) - 1;
    joins[end / 64 + 1] = 0;
    if (last) return length;
    size_t stop = end;
    while (stop >= num_open && stop > 0 && (joins[(stop - 1) / 64] >> (stop - 1) % 64 & 1) != 0) --stop;
    if (stop < num_open || stop == 0) return 0;
    joins[stop / 64] &= (uint64_t{1} << stop % 64) - 1;
    std::fill(joins + stop / 64 + 1, joins + end / 64 + 1, 0);
    return stop;
}

void Bpe::merge_pair(uint32_t* symbols) const {
    const uint32_t joined = join(symbols[0], symbols[1]);
    symbols[0] = joined == kNone ? symbols[0] : joined;
    symbols[1] = joined == kNone ? symbols[1] : kGone;
}

void Bpe::merge_three(uint32_t* symbols) const {
    const uint32_t first = join(symbols[0], symbols[1]), second = join(symbols[1], symbols[2]);
    const bool is_second = before(second, first);
    const uint32_t left = is_second ? symbols[0] : first, right = is_second ? second : symbols[2];
    if (first == kNone && second == kNone) return;
    const uint32_t all = join(left, right);
    symbols[0] = all == kNone ? left : all;
    symbols[1] = all == kNone ? right : kGone;
    symbols[2] = kGone;
}

// Merges the complete segments, which end before `stop`. What is left of each is followed by kGone.
void Bpe::merge_segments(size_t stop, State& state) const {
    uint32_t* const symbols = state.symbols.data();
    const uint64_t* const joins = state.joins.data();
    uint64_t before = 0;
    for (size_t begin = 0; begin < stop; begin += 64) {
        const uint64_t bits = joins[begin / 64], after = joins[begin / 64 + 1];
        const uint64_t starts = bits & ~(bits << 1 | before >> 63);
        const uint64_t second = bits >> 1 | after << 63, third = bits >> 2 | after << 62;
        before = bits;
        for (uint64_t pairs = starts & ~second; pairs != 0; pairs &= pairs - 1) {
            merge_pair(symbols + begin + first_bit(pairs));
        }
        for (uint64_t threes = starts & second & ~third; threes != 0; threes &= threes - 1) {
            merge_three(symbols + begin + first_bit(threes));
        }
        for (uint64_t longer = starts & second & third; longer != 0; longer &= longer - 1) {
            const size_t place = begin + static_cast<size_t>(first_bit(longer));
            const size_t length = run_length(joins, place) + 1;
            const size_t num_left = merge(symbols + place, length, state);
            std::fill(symbols + place + num_left, symbols + place + length, kGone);
        }
    }
}

// A symbol that is no piece; returns the end of its ids.
template <typename Id>
Id* Bpe::put_special(uint32_t symbol, bool after_unknown, Id* at) const {
    auto put = [&](int id) { *at++ = static_cast<Id>(id); };
    if ((symbol & kSpaceMark) == kSpaceMark) {
        for (int id : space_mark_ids_) put(id);
        return at;
    }
    const uint32_t code_point = symbol >= kUnknown ? symbol & ~kUnknown : characters_[symbol - vocab_size_];
    auto trail = [&](int shift) { put(byte_ids_[0x80 | (code_point >> shift & 0x3F)]); };
    if (!byte_fallback_) {
        if (!after_unknown) put(unknown_id_);  // a run of unknown characters is one token
    } else if (code_point < 0x80) {
        put(byte_ids_[code_point]);
    } else if (code_point < 0x800) {
        put(byte_ids_[0xC0 | code_point >> 6]);
        trail(0);
    } else if (code_point < 0x10000) {
        put(byte_ids_[0xE0 | code_point >> 12]);
        trail(6), trail(0);
    } else {
        put(byte_ids_[0xF0 | code_point >> 18]);
        trail(12), trail(6), trail(0);
    }
    return at;
}

// Appends the ids of the symbols before `stop`.
template <typename Id>
void Bpe::put_symbols(size_t stop, State& state, IdBuffer<Id>& ids) const {
    ids.reserve(stop * most_ids_);
    Id* at = ids.end();
    const Id* unknown_end = state.after_unknown ? at : nullptr;
    const uint32_t vocab_size = vocab_size_;
    const uint32_t* const symbols = state.symbols.data();
    for (size_t place = 0; place < stop; ++place) {
        const uint32_t symbol = symbols[place];
        const uint32_t id = symbol & ~(kAlone | kGone);
        if (id < vocab_size) {
            *at = static_cast<Id>(id);
            at += symbol >> 30 ^ 1;  // not kGone
        } else if (symbol == kDocumentEnd) {
            *at++ = static_cast<Id>(state.eod_id);
            state.ends.push_back(static_cast<size_t>(at - ids.data()));
        } else {
            at = put_special(symbol, at == unknown_end, at);
            if (symbol != kSpaceMark) unknown_end = at;
        }
    }
    state.after_unknown = at == unknown_end;
    ids.set_end(at);
}

// Gives out the segments that are complete; with `last`, all.
template <typename Id>
void Bpe::settle(bool last, State& state, IdBuffer<Id>& ids) const {
    if (state.length == 0) return;
    const size_t stop = find_segments(last, state);
    if (stop > 0) {
        merge_segments(stop, state);
        put_symbols(stop, state, ids);
        state.length -= stop;
        std::memmove(state.symbols.data(), state.symbols.data() + stop, state.length * sizeof(uint32_t));
        std::fill_n(state.joins.data(), state.length / 64 + 1, kAll);
        size_t& begin = state.document_begin;
        if (begin != kGivenOut) begin = begin < stop ? kGivenOut : begin - stop;
    }
    state.num_open = state.length;
}

template <typename Id>
size_t Bpe::encode(std::string_view text, bool last, State& state, IdBuffer<Id>& ids) const {
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at < end) {
        const size_t num_bytes = std::min(kBlockBytes, static_cast<size_t>(end - at));
        state.make_room(state.length + num_bytes);
        const char* const stop = at + num_bytes;
        at = read_symbols(at, stop, end, last, state);
        if (at == nullptr) return kInvalid;
        if (state.length >= kEnoughSymbols) settle(false, state, ids);
        if (at < stop) break;
    }
    return static_cast<size_t>(at - text.data());
}

template <typename Id>
void Bpe::finish(State& state, IdBuffer<Id>& ids) const {
    settle(true, state, ids);
    state.after_unknown = false;
}

void Bpe::end_document(State& state) const {
    state.make_room(state.length + 1);
    state.symbols[state.length++] = kDocumentEnd;
    state.document_begin = state.length;
}

template <typename Id>
void Bpe::drop_document(State& state, IdBuffer<Id>& ids) const {
    if (state.document_begin == kGivenOut) {
        ids.cut(state.ends.back());
        state.document_begin = 0;
    }
    state.length = state.document_begin;
    state.num_open = std::min(state.num_open, state.length);
}

template size_t Bpe::encode<uint16_t>(std::string_view, bool, State&, IdBuffer<uint16_t>&) const;
template size_t Bpe::encode<int32_t>(std::string_view, bool, State&, IdBuffer<int32_t>&) const;
template void Bpe::finish<uint16_t>(State&, IdBuffer<uint16_t>&) const;
template void Bpe::finish<int32_t>(State&, IdBuffer<int32_t>&) const;
template void Bpe::drop_document<uint16_t>(State&, IdBuffer<uint16_t>&) const;
template void Bpe::drop_document<int32_t>(State&, IdBuffer<int32_t>&) const;

}  // namespace megagpt
