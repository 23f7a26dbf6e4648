// Documents to token ids. Shared tables (Core) and one thread's worker (Worker). Knows JSON lines and plain texts;
// knows nothing of files, threads or Python.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bpe.h"
#include "json_line.h"
#include "model.h"
#include "normalizer.h"
#include "unigram.h"

namespace megagpt {

// What all threads share; never changes. Throws std::runtime_error where the model cannot be encoded natively.
struct Core {
    // `space_mark_ids`: what a U+2581 in the text becomes; empty: what sentencepiece makes of it.
    Core(std::string_view model_bytes, std::vector<int> space_mark_ids);

    ModelFile model;
    std::vector<int> space_mark_ids;
    Normalizer normalizer;
    bool raw = false;  // the BPE encoder reads the corpus's own bytes, without a normalised copy
    std::unique_ptr<Bpe> bpe;
    std::unique_ptr<Unigram> unigram;
};

// One thread's encoder and what it has encoded: ids of documents, each ended by the end-of-document id.
template <typename Id>
class Worker {
  public:
    Worker(const Core& core, int eod_id) : core_(core), eod_id_(eod_id) { bpe_.eod_id = eod_id; }

    // Encodes the lines of `content` from byte `at` on; returns where it stopped: the end, or the start of a line that
    // is odd (json_line.h) or not UTF-8, of which nothing was kept.
    size_t encode_lines(std::string_view content, size_t at, std::string_view key);

    // Encodes text number `first` and those after it; text n is data[offsets[n]:offsets[n + 1]]. Returns the number of
    // the first that is empty or not UTF-8, of which nothing was kept, or `count`. Throws std::runtime_error where
    // offsets do not rise within the data.
    size_t encode_texts(std::string_view data, const int64_t* offsets, size_t first, size_t count);

    // One whole document; bytes that are not UTF-8 become U+FFFD as sentencepiece makes them.
    void encode_text(std::string_view text);

    // A document in parts: begin, push parts, finish. `push` returns false where the text is not UTF-8.
    void begin();
    bool push(std::string_view text);
    // A part of a JSON string; returns the bytes read (the rest belongs to the next part), or kWrongEscape where an
    // escape is wrong or the text is not UTF-8.
    size_t push_json(std::string_view raw, bool last);
    bool finish();

    IdBuffer<Id> ids;
    std::vector<int64_t> lengths;
    size_t text_bytes = 0;
    size_t num_characters = 0;

  private:
    void begin_batch();
    void end_batch();
    size_t batch_lines(std::string_view content, size_t at, std::string_view key);
    size_t batch_texts(std::string_view data, const int64_t* offsets, size_t first, size_t count);
    bool encode_json(const JsonString& found);
    bool encode_document(std::string_view text);
    bool encode_raw(std::string_view text);
    bool encode_normalised(std::string_view text);
    void start();
    bool part(std::string_view text, bool last);
    bool plain_part(std::string_view text, bool last);
    bool raw_part(std::string_view text, bool last);
    void normalised_part(bool last);
    void put_end();

    const Core& core_;
    int eod_id_;
    Bpe::State bpe_;
    Unigram::State unigram_;
    Normalizer::State normalizer_;
    bool unigram_after_unknown_ = false;
    std::string unescaped_;
    std::string unread_;      // the end of the part before that the encoder did not read
    std::string cut_;         // a character's first bytes at the end of a pushed part
    std::string normalised_;  // and not yet encoded
    std::string joined_;
    size_t streamed_ids_ = 0, streamed_bytes_ = 0, streamed_characters_ = 0;

  public:
    // Ids taken away while a document is still open count for its length.
    void taken(size_t count) { streamed_ids_ += count; }
};

}  // namespace megagpt
