#include "encoder.h"

#include <cstring>
#include <stdexcept>

#include "utf8.h"

namespace megagpt {
namespace {

constexpr size_t kSliceBytes = size_t{1} << 18;
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

// Writes the pieces of a unigram segmentation as ids.
template <typename Id>
class IdSink : public PieceSink {
  public:
    IdSink(const ModelFile& model, IdBuffer<Id>& ids, bool& after_unknown)
        : model_(model), ids_(ids), after_unknown_(after_unknown) {}

    void piece(int id, std::string_view text) override {
        ids_.reserve(text.size() + 1);
        const bool unknown = id == model_.unknown_id;
        if (unknown && model_.byte_fallback) {
            for (char byte : text) ids_.put(model_.byte_ids[static_cast<unsigned char>(byte)]);
        } else if (!unknown || !after_unknown_) {
            ids_.put(id);  // a run of unknown pieces is one token
        }
        after_unknown_ = unknown;
    }

  private:
    const ModelFile& model_;
    IdBuffer<Id>& ids_;
    bool& after_unknown_;
};

bool has_space(const ModelFile& model) {
    for (const Piece& piece : model.pieces) {
        if (piece.type != PieceType::kUserDefined) continue;
        if (piece.text.find(kSpaceMark) != std::string::npos || piece.text.find(' ') != std::string::npos) return true;
    }
    return false;
}

// Bytes at the end of `text` that may begin a character or a U+2581 which the next part completes.
size_t cut_end(std::string_view text) {
    for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
        const char byte = text[text.size() - back];
        if ((static_cast<unsigned char>(byte) & 0xC0) == 0x80) continue;
        return announced_length(byte) > back ? back : 0;
    }
    return 0;
}

std::string replace_invalid(std::string_view text) {
    std::string valid;
    while (!text.empty()) {
        const size_t length = valid_length(text);
        if (length == 0)
            valid += "\xEF\xBF\xBD";
        else
            valid.append(text.substr(0, length));
        text.remove_prefix(length == 0 ? 1 : length);
    }
    return valid;
}

// Whether a text's two offsets do.
bool lies_within(const int64_t* offsets, size_t size) {
    return offsets[0] >= 0 && offsets[0] <= offsets[1] && offsets[1] <= static_cast<int64_t>(size);
}

}  // namespace

Core::Core(std::string_view model_bytes, std::vector<int> mark_ids)
    : model(ModelFile::parse(model_bytes)), space_mark_ids(std::move(mark_ids)), normalizer(model) {
    if (model.type == ModelType::kUnigram) {
        unigram = std::make_unique<Unigram>(model);
        return;
    }
    raw = normalizer.only_escapes_spaces() && !has_space(model);
    bpe = std::make_unique<Bpe>(model, raw, raw ? space_mark_ids : std::vector<int>());
}

template <typename Id>
size_t Worker<Id>::encode_lines(std::string_view content, size_t at, std::string_view key) {
    begin_batch();
    const size_t stopped = batch_lines(content, at, key);
    end_batch();
    return stopped;
}

template <typename Id>
size_t Worker<Id>::encode_texts(std::string_view data, const int64_t* offsets, size_t first, size_t count) {
    begin_batch();
    const size_t stopped = batch_texts(data, offsets, first, count);
    end_batch();
    if (stopped < count && !lies_within(offsets + stopped, data.size())) {
        throw std::runtime_error("offsets do not rise within the data");
    }
    return stopped;
}

template <typename Id>
void Worker<Id>::encode_text(std::string_view text) {
    begin_batch();
    if (!core_.raw || is_utf8(text)) {
        encode_document(text);  // the normaliser takes any bytes
    } else {
        encode_document(replace_invalid(text));
    }
    end_batch();
}

// What is encoded from the corpus's own bytes is given out by `end_batch`, for many documents at once.
template <typename Id>
void Worker<Id>::begin_batch() {
    bpe_.reset(ids.size());
}

template <typename Id>
void Worker<Id>::end_batch() {
    if (!core_.raw) return;
    core_.bpe->finish(bpe_, ids);
    for (size_t number = 1; number < bpe_.ends.size(); ++number) {
        lengths.push_back(static_cast<int64_t>(bpe_.ends[number] - bpe_.ends[number - 1]));
    }
}

template <typename Id>
size_t Worker<Id>::batch_lines(std::string_view content, size_t at, std::string_view key) {
    while (at < content.size()) {
        const void* newline = std::memchr(content.data() + at, '\n', content.size() - at);
        const size_t stop = newline == nullptr
                                ? content.size()
                                : static_cast<size_t>(static_cast<const char*>(newline) - content.data());
        JsonString found;
        const LineKind kind = find_text(content.substr(at, stop - at), key, found);
        if (kind == LineKind::kOdd || (kind == LineKind::kText && !encode_json(found))) return at;
        at = newline == nullptr ? stop : stop + 1;
    }
    return content.size();
}

template <typename Id>
size_t Worker<Id>::batch_texts(std::string_view data, const int64_t* offsets, size_t first, size_t count) {
    for (size_t number = first; number < count; ++number) {
        if (!lies_within(offsets + number, data.size())) return number;
        const auto start = static_cast<size_t>(offsets[number]), stop = static_cast<size_t>(offsets[number + 1]);
        const std::string_view text = data.substr(start, stop - start);
        if (text.empty() || (!core_.raw && !is_utf8(text)) || !encode_document(text)) return number;
    }
    return count;
}

template <typename Id>
bool Worker<Id>::encode_json(const JsonString& found) {
    if (!found.escaped) {
        if (!core_.raw && !is_utf8(found.raw)) return false;
        return encode_document(found.raw);
    }
    if (unescaped_.size() <= found.raw.size()) unescaped_.resize(found.raw.size() * 2);
    char* end = unescaped_.data();
    if (unescape(found.raw, true, end) == kWrongEscape) return false;
    const std::string_view text(unescaped_.data(), static_cast<size_t>(end - unescaped_.data()));
    if (!core_.raw && !is_utf8(text)) return false;
    return encode_document(text);
}

// A whole document; false (and nothing kept) where raw text turns out not to be UTF-8.
template <typename Id>
bool Worker<Id>::encode_document(std::string_view text) {
    if (!(core_.raw ? encode_raw(text) : encode_normalised(text))) return false;
    text_bytes += text.size();
    num_characters += count_characters(text);
    return true;
}

template <typename Id>
bool Worker<Id>::encode_raw(std::string_view text) {
    if (core_.bpe->encode(text, true, bpe_, ids) == Bpe::kInvalid) {
        core_.bpe->drop_document(bpe_, ids);
        return false;
    }
    core_.bpe->end_document(bpe_);
    return true;
}

template <typename Id>
bool Worker<Id>::encode_normalised(std::string_view text) {
    const size_t begin = ids.size();
    start();
    while (text.size() > kSliceBytes) {  // bounds the buffers of long documents
        const size_t slice = kSliceBytes - cut_end(text.substr(0, kSliceBytes));
        part(text.substr(0, slice), false);
        text.remove_prefix(slice);
    }
    part(text, true);
    put_end();
    lengths.push_back(static_cast<int64_t>(ids.size() - begin));
    return true;
}

template <typename Id>
void Worker<Id>::put_end() {
    ids.reserve(1);
    ids.put(eod_id_);
}

template <typename Id>
void Worker<Id>::start() {
    bpe_.reset(ids.size());
    unigram_.reset();
    normalizer_ = {};
    unigram_after_unknown_ = false;
    unread_.clear();
    normalised_.clear();
}

template <typename Id>
bool Worker<Id>::part(std::string_view text, bool last) {
    if (core_.raw) return raw_part(text, last);
    if (core_.space_mark_ids.empty()) return plain_part(text, last);
    while (true) {  // what stands between two U+2581 is encoded as a text of its own
        const size_t mark = text.find(kSpaceMark);
        if (mark == std::string_view::npos) return plain_part(text, last);
        plain_part(text.substr(0, mark), true);
        ids.reserve(core_.space_mark_ids.size());
        for (int id : core_.space_mark_ids) ids.put(id);
        start();
        text.remove_prefix(mark + kSpaceMark.size());
    }
}

template <typename Id>
bool Worker<Id>::plain_part(std::string_view text, bool last) {
    core_.normalizer.push(text, last, normalizer_, normalised_);
    normalised_part(last);
    return true;
}

template <typename Id>
bool Worker<Id>::raw_part(std::string_view text, bool last) {
    if (!unread_.empty()) {
        joined_ = unread_;
        joined_ += text;
        text = joined_;
    }
    const size_t used = core_.bpe->encode(text, last, bpe_, ids);
    if (used == Bpe::kInvalid) return false;
    if (last) core_.bpe->finish(bpe_, ids);
    unread_.assign(text.substr(used));
    return true;
}

template <typename Id>
void Worker<Id>::normalised_part(bool last) {
    if (core_.unigram != nullptr) {
        IdSink<Id> sink(core_.model, ids, unigram_after_unknown_);
        core_.unigram->encode(normalised_, last, unigram_, sink);
        normalised_.clear();
        return;
    }
    const size_t used = core_.bpe->encode(normalised_, last, bpe_, ids);
    if (last) core_.bpe->finish(bpe_, ids);
    normalised_.erase(0, used);  // normalised text is UTF-8: never kInvalid
}

template <typename Id>
void Worker<Id>::begin() {
    start();
    streamed_ids_ = streamed_bytes_ = streamed_characters_ = 0;
    cut_.clear();
}

template <typename Id>
bool Worker<Id>::push(std::string_view text) {
    std::string whole = std::move(cut_);
    whole += text;
    const size_t cut = cut_end(whole);
    const std::string_view ready = std::string_view(whole).substr(0, whole.size() - cut);
    if (!is_utf8(ready)) return false;
    streamed_bytes_ += ready.size();
    streamed_characters_ += count_characters(ready);
    if (!part(ready, false)) return false;
    cut_ = whole.substr(whole.size() - cut);
    return true;
}

template <typename Id>
size_t Worker<Id>::push_json(std::string_view raw, bool last) {
    std::string text(raw.size(), '\0');
    char* end = text.data();
    const size_t used = unescape(raw, last, end);
    if (used == kWrongEscape) return kWrongEscape;
    text.resize(static_cast<size_t>(end - text.data()));
    return push(text) ? used : kWrongEscape;
}

template <typename Id>
bool Worker<Id>::finish() {
    if (!cut_.empty() || !part(std::string_view(), true)) return false;
    put_end();
    lengths.push_back(static_cast<int64_t>(streamed_ids_ + ids.size()));
    text_bytes += streamed_bytes_;
    num_characters += streamed_characters_;
    return true;
}

template class Worker<uint16_t>;
template class Worker<int32_t>;

}  // namespace megagpt
