// Byte-pair encoding with sentencepiece's result (bpe_model.cc), by segments.
//
// Two neighbouring characters can only ever be joined if some piece contains them side by side. Text is cut wherever
// that is impossible; each segment, most of one to three characters, is merged by itself: best score first, leftmost of
// equals.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model.h"

namespace megagpt {

// Token ids of many documents, one after the other; `reserve` before `put`, which does not check. Memory that is
// reserved and not used is never touched.
template <typename Id>
class IdBuffer {
  public:
    IdBuffer() = default;
    IdBuffer(const IdBuffer&) = delete;
    IdBuffer& operator=(const IdBuffer&) = delete;
    ~IdBuffer() { std::free(ids_); }

    void reserve(size_t more) {
        if (size_ + more <= capacity_) return;
        const size_t capacity = (size_ + more) * 3 / 2 + 1024;
        void* grown = std::realloc(ids_, capacity * sizeof(Id));
        if (grown == nullptr) throw std::bad_alloc();
        ids_ = static_cast<Id*>(grown);
        capacity_ = capacity;
    }
    void put(int id) { ids_[size_++] = static_cast<Id>(id); }
    const Id* data() const { return ids_; }
    size_t size() const { return size_; }
    void cut(size_t size) { size_ = size; }

  private:
    Id* ids_ = nullptr;
    size_t size_ = 0;
    size_t capacity_ = 0;
};

class Bpe {
  public:
    // `raw`: text comes as it is in the corpus and a space stands for U+2581; else it is normalised already. Where
    // `space_mark_ids` are given (raw only), a U+2581 in the text becomes these. Throws std::runtime_error.
    Bpe(const ModelFile& model, bool raw, std::vector<int> space_mark_ids);

    static constexpr size_t kRemembered = 12;     // symbols of a segment that is remembered
    static constexpr size_t kRememberedLeft = 6;  // and of what it is merged to
    static constexpr int kRememberedBits = 13;

    // One document's state; its buffers are kept from one document to the next.
    struct State {
        // Segments merged before, each in the place that its hash gives.
        struct Remembered {
            uint32_t length = 0;
            uint32_t num_left = 0;
            uint32_t symbols[kRemembered];
            uint32_t left[kRememberedLeft];
        };
        std::vector<Remembered> remembered = std::vector<Remembered>(1 << kRememberedBits);
        std::vector<uint32_t> segment;  // symbols not yet decided, `length` of them
        size_t length = 0;
        bool after_unknown = false;
        void reset() {
            length = 0;
            after_unknown = false;
        }
    };

    static constexpr size_t kInvalid = ~size_t{0};

    // Appends the ids of `text` and returns how many of its bytes were read: all with `last`, else perhaps a few less,
    // to be given again with what follows. kInvalid where the text is not UTF-8. The byte after `text` must be readable
    // and no continuation byte. The buffer must have room for kIdsPerSymbol ids for each byte of `text` and undecided
    // symbol.
    template <typename Id>
    size_t encode(std::string_view text, bool last, State& state, IdBuffer<Id>& ids) const;

    static constexpr size_t kIdsPerSymbol = 4;  // a character becomes four bytes at most

  private:
    // A symbol is a character that some piece contains or a piece: pieces of several characters come first, the best
    // score lowest. Characters that can never be joined have no symbol but one of these marks.
    static constexpr uint32_t kMarks = 1u << 29;        // this and above: a mark
    static constexpr uint32_t kKnown = 1u << 29;        // | id
    static constexpr uint32_t kSymbolStart = 1u << 30;  // | index: user-defined symbols can begin here
    static constexpr uint32_t kSpaceMark = 3u << 29;
    static constexpr uint32_t kUnknown = 1u << 31;  // | code point
    static constexpr uint32_t kMarkKind = 7u << 29;
    static constexpr uint32_t kNone = ~0u;

    struct UserSymbol {
        std::string text;
        int id;
    };
    struct Start {
        std::vector<UserSymbol> symbols;  // longest first
        uint32_t otherwise;               // what the character is where none matches
    };

    void number_symbols(const ModelFile& model);
    void add_pairs(const ModelFile& model);
    void add_user_symbols(const ModelFile& model);
    uint32_t symbol_of(uint32_t code_point) const;
    void set_symbol(uint32_t code_point, uint32_t symbol);
    uint32_t join(uint32_t left, uint32_t right) const;
    void insert_pair(uint32_t left, uint32_t right, uint32_t joined);
    void allow_neighbours(uint32_t left, uint32_t right);
    bool neighbours(uint32_t left, uint32_t right) const;
    bool before(uint32_t one, uint32_t other) const;
    size_t merge_short(uint32_t* symbols, size_t length) const;
    size_t merge_long(uint32_t* symbols, size_t length) const;
    size_t merge(State& state, size_t length) const;
    template <typename Id>
    void flush(State& state, IdBuffer<Id>& ids) const;
    template <typename Id>
    void put(uint32_t symbol, State& state, IdBuffer<Id>& ids) const;
    template <typename Id>
    void put_unknown(uint32_t code_point, State& state, IdBuffer<Id>& ids) const;
    template <typename Id>
    void put_mark(uint32_t mark, State& state, IdBuffer<Id>& ids) const;
    static const UserSymbol* match(const Start& start, std::string_view rest);

    bool raw_;
    bool byte_fallback_;
    int unknown_id_;
    int byte_ids_[256];
    std::vector<int> space_mark_ids_;
    std::vector<uint32_t> basic_plane_;  // code point -> symbol or mark
    std::unordered_map<uint32_t, uint32_t> other_planes_;
    std::vector<int> id_of_symbol_;  // -1: a character that is no piece
    std::vector<uint32_t> rank_;     // empty where all scores differ
    std::vector<uint32_t> character_of_symbol_;
    std::vector<std::vector<uint32_t>> piece_characters_;  // by symbol, while the tables are made
    uint32_t num_joined_ = 0;                              // symbols below it are pieces of several characters
    std::vector<uint64_t> pairs_;                          // left 21 bits | right 21 | joined 22, hashed
    int pairs_shift_ = 0;
    std::vector<uint64_t> neighbours_;  // bits, hashed: never a false no
    int neighbours_shift_ = 0;
    std::vector<Start> starts_;
    size_t longest_user_symbol_ = 0;
};

}  // namespace megagpt
