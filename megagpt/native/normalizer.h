// Normalisation as sentencepiece does it (normalizer.cc), for a document that may come in parts.
//
// Left to right: a user-defined symbol stays as it is, else the longest rule that matches is applied, else a character
// is copied; spaces are then merged, marked and trimmed as the model says. Runs in which no rule or symbol begins are
// copied whole.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "model.h"

namespace megagpt {

class Normalizer {
  public:
    // Throws std::runtime_error where the precompiled map is damaged or a user-defined symbol is not UTF-8. Keeps no
    // reference to `model`.
    explicit Normalizer(const ModelFile& model);
    ~Normalizer();

    // True where nothing changes but a space, which becomes U+2581 (and an invalid byte, which becomes U+FFFD): no map,
    // no dummy prefix, no removal of whitespace, whitespace escaped. User-defined symbols do not matter then.
    bool only_escapes_spaces() const;

    // What one document needs between its parts; `reset` before each document.
    struct State {
        std::string unread;           // the end of what was pushed, too short to decide on
        bool started = false;         // something other than leading spaces was read
        bool previous_space = false;  // the next spaces are dropped
        size_t num_held_back = 0;     // space marks, not yet given out: they vanish where the document ends here
        void reset() {
            unread.clear();
            started = previous_space = false;
            num_held_back = 0;
        }
    };

    // Appends to `out` what `text`, the next part of the document, normalises to; `last` says that it is the last part.
    // All parts together give exactly what sentencepiece gives for the whole. `out` is always whole characters.
    void push(std::string_view text, bool last, State& state, std::string& out) const;

  private:
    struct Tables;
    struct Prefix;
    class Writer;

    size_t run(std::string_view text, size_t until, bool last, State& state, std::string& out) const;
    size_t copy_run(std::string_view text, State& state, Writer& writer) const;
    Prefix read_prefix(std::string_view rest) const;
    void append(std::string_view result, State& state, Writer& writer) const;
    void hold_back(size_t out_start, bool last, State& state, std::string& out) const;

    std::unique_ptr<const Tables> tables_;
};

}  // namespace megagpt
