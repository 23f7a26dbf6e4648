// The best segmentation under a unigram model, exactly as sentencepiece's EncodeOptimized (unigram_model.cc, 0.2.3)
// finds it, with its 32-bit float sums.
//
// Places between characters are nodes, pieces are edges; the best edge into each node is kept. A node that no piece
// spans is on every path: what lies before it is decided, given out and forgotten.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model.h"
#include "path_history.h"

namespace megagpt {

class Unigram {
  public:
    // Throws std::runtime_error where the model has no normal piece, or one that is not UTF-8, is too long or has a
    // score that is no number or too large. Keeps no reference to `model`.
    explicit Unigram(const ModelFile& model);
    ~Unigram();

    // One document's state and the buffers of one thread; `reset` before each document. Node n is the start of
    // character n, counted from a place where every path is cut; all before node `first` was given out.
    struct State {
        std::string unread;             // the text from node `first` on, where the document comes in parts
        size_t num_decoded_bytes = 0;   // of it; their characters are in `symbols`
        std::vector<uint32_t> symbols;  // [num_symbols + 1], with a 0 behind the last
        std::vector<float> scores;      // [num_symbols + 1] of the best path to each node; -infinity: none yet
        std::vector<int32_t> edges;     // [num_symbols + 1] the last piece of that path
        size_t num_symbols = 0;
        size_t first = 0;
        size_t next = 0;      // the node from which pieces are looked up next
        size_t frontier = 0;  // the last node that a piece leads to
        PathHistory history;  // of the paths to the nodes from `first` on, if these are not given out
        std::vector<int32_t> path;
        void reset();
    };

    // Gives the pieces of `text`, the next part of a document's normalised text (whole characters), to `sink` as far as
    // they are decided; with `last`, all. Memory does not grow with the document: where no piece spans two neighbouring
    // characters every path is cut, in a long run without such a place the paths soon share all but their ends, and
    // where they do not, because the run is periodic, they are packed.
    void encode(std::string_view text, bool last, State& state, PieceSink& sink) const;

  private:
    struct Tables;
    class Walk;

    std::unique_ptr<const Tables> tables_;
};

}  // namespace megagpt
