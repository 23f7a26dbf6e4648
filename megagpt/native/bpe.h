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
    Id* end() { return ids_ + size_; }
    void set_end(const Id* end) { size_ = static_cast<size_t>(end - ids_); }
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

    static constexpr size_t kGivenOut = ~size_t{0};

    static constexpr size_t kRemembered = 12;     // symbols of a segment that is remembered
    static constexpr size_t kRememberedLeft = 6;  // and of what it is merged to
    static constexpr int kRememberedBits = 13;

    // What one thread has read and not given out yet, of one document or of many.
    struct State {
        // Segments merged before, each in the place that its hash gives.
        struct Remembered {
            uint32_t length = 0;
            uint32_t num_left = 0;
            uint32_t symbols[kRemembered];
            uint32_t left[kRememberedLeft];
        };
        std::vector<Remembered> remembered = std::vector<Remembered>(1 << kRememberedBits);
        std::vector<uint32_t> symbols;  // not given out yet: `length` of them; the first `num_open` are one segment
        std::vector<uint64_t> joins;    // a bit a symbol: it may be joined with the next
        size_t length = 0, num_open = 0;
        size_t document_begin = 0;  // of the document being read; kGivenOut: ids of it have been appended
        bool after_unknown = false;
        int eod_id = -1;
        std::vector<size_t> ends;  // where documents end in the ids, after the place where the first begins
        void make_room(size_t num_symbols);
        // Begins anew, with ids from `begin` on.
        void reset(size_t begin);
    };

    static constexpr size_t kInvalid = ~size_t{0};

    // Reads `text` and returns how many of its bytes were read: all with `last`, else perhaps a few less, to be given
    // again with what follows. kInvalid where the text is not UTF-8. The byte after `text` must be readable. Appends
    // ids only now and then.
    template <typename Id>
    size_t encode(std::string_view text, bool last, State& state, IdBuffer<Id>& ids) const;

    // Appends all ids that there are of what was read. What is read next is a text of its own.
    template <typename Id>
    void finish(State& state, IdBuffer<Id>& ids) const;

    // Ends a document of which everything was read, with an id; or forgets what was read of it.
    void end_document(State& state) const;
    template <typename Id>
    void drop_document(State& state, IdBuffer<Id>& ids) const;

  private:
    // A symbol is a piece's id or, from the vocabulary's size on, a character that pieces hold and that is none itself.
    // What can never be joined has a mark; without kUnknown the id is beside it.
    static constexpr uint32_t kAlone = 1u << 29;
    static constexpr uint32_t kGone = 1u << 30;     // joined with what stands before it
    static constexpr uint32_t kUnknown = 1u << 31;  // | code point
    static constexpr uint32_t kSpaceMark = kUnknown | kAlone;
    static constexpr uint32_t kDocumentEnd = kSpaceMark | 1;
    static constexpr uint32_t kSymbolStart = kUnknown | kGone;  // | index: user-defined symbols can begin here
    static constexpr uint32_t kNoCharacter = ~0u;               // three bytes that are not UTF-8
    static constexpr uint32_t kNone = ~0u;
    static constexpr uint64_t kEmpty = ~uint64_t{0};  // no pair

    struct UserSymbol {
        std::string text;
        int id;
    };
    struct Start {
        std::vector<UserSymbol> symbols;  // longest first
        uint32_t otherwise;               // what the character is where none matches
    };

    std::vector<int> number_symbols(const ModelFile& model);
    void add_pairs(const ModelFile& model, const std::vector<int>& joined_ids);
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
    size_t merge(uint32_t* symbols, size_t length, State& state) const;
    void merge_pair(uint32_t* symbols) const;
    void merge_three(uint32_t* symbols) const;
    const char* read_symbols(const char* at, const char* stop, const char* end, bool last, State& state) const;
    const char* read_rare(const char* at, const char* end, bool last, uint32_t& symbol) const;
    size_t find_segments(bool last, State& state) const;
    void merge_segments(size_t stop, State& state) const;
    template <typename Id>
    void settle(bool last, State& state, IdBuffer<Id>& ids) const;
    template <typename Id>
    void put_symbols(size_t stop, State& state, IdBuffer<Id>& ids) const;
    template <typename Id>
    Id* put_special(uint32_t symbol, bool after_unknown, Id* at) const;
    static const UserSymbol* match(const Start& start, std::string_view rest);

    bool raw_;
    bool byte_fallback_;
    int unknown_id_;
    int byte_ids_[256];
    std::vector<int> space_mark_ids_;
    size_t most_ids_;                       // that a symbol becomes
    std::vector<uint32_t> low_characters_;  // code point below 0x800 -> symbol or mark
    std::vector<uint32_t> basic_plane_;     // the same, from 0x800 on
    std::unordered_map<uint32_t, uint32_t> other_planes_;
    uint32_t vocab_size_ = 0;
    std::vector<uint32_t> characters_;  // by symbol from vocab_size_ on
    std::vector<uint32_t> rank_;        // by symbol; empty where the symbols are in the order of their scores
    std::vector<std::vector<uint32_t>> piece_characters_;  // by symbol, while the tables are made
    std::vector<uint64_t> pairs_;                          // left 21 bits | right 21 | joined 22, hashed
    int pairs_shift_ = 0;
    std::vector<uint64_t> neighbours_;  // bits, hashed: never a false no
    int neighbours_shift_ = 0;
    std::vector<Start> starts_;
    size_t longest_user_symbol_ = 0;
};

}  // namespace megagpt
