// What unigram.cpp and unigram_walk.cpp share.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "code_points.h"
#include "trie.h"
#include "unigram.h"

namespace megagpt {

struct Unigram::Tables {
    struct Size {
        uint16_t num_bytes = 0, num_characters = 0;
        uint32_t text_start = 0;
    };
    CodePointTable<uint32_t> symbols;  // 0: in no piece
    std::unique_ptr<const Trie> trie;  // of symbols; ids and scores
    std::vector<Size> sizes;           // by id
    std::string texts;                 // of all pieces
    size_t longest = 0;                // characters
    float unknown_score = 0;
    int unknown_id;

    explicit Tables(const ModelFile& model);
    std::string_view text(int32_t id) const {
        const Size& size = sizes[static_cast<size_t>(id)];
        return std::string_view(texts).substr(size.text_start, size.num_bytes);
    }

  private:
    void number_symbols(std::vector<Trie::Entry>& entries);
};

// Goes through one part of a document; `text` begins at node `first`.
class Unigram::Walk {
  public:
    Walk(const Tables& tables, std::string_view text, bool last, State& state, PieceSink& sink)
        : tables_(tables), text_(text), last_(last), state_(state), sink_(sink), decoded_(state.num_decoded_bytes) {}

    // Returns how many bytes are not needed again.
    size_t run();

  private:
    // Instead of a piece's id in `edges`. From kPacked on downwards: the path to the node is number (kPacked - edge) of
    // the history's last block.
    static constexpr int32_t kUnknown = -1, kPacked = -2;

    void decode();
    uint32_t decode_character();
    void advance(size_t stop);
    void reset_scores(size_t node, size_t frontier);
    void cut(size_t node);
    size_t piece_bytes(int32_t edge, size_t at) const;
    void give_piece(int32_t edge);
    void give_packed(PackedPiece piece);
    void give_path(size_t node);
    size_t node_before(size_t node) const;
    size_t trace(size_t node);
    std::vector<size_t> live_nodes() const;
    size_t common_node() const;
    void pack();
    void skip_to(size_t node);

    const Tables& tables_;
    const std::string_view text_;
    const bool last_;
    State& state_;
    PieceSink& sink_;
    size_t passed_ = 0;  // bytes: node `first` lies there
    size_t decoded_;     // bytes
};

}  // namespace megagpt
