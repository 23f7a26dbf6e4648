#include "normalizer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "charsmap.h"
#include "code_points.h"
#include "trie.h"
#include "utf8.h"

namespace megagpt {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";        // U+2581
constexpr std::string_view kReplacementMark = "\xEF\xBF\xBD";  // U+FFFD

// Bit of a following byte; a byte's neighbours share it.
uint64_t bit_of(char byte) { return uint64_t{1} << (static_cast<unsigned char>(byte) >> 2); }

// Keys made of bytes; symbols are byte + 1.
Trie byte_trie(const std::vector<std::string>& keys) {
    std::vector<Trie::Entry> entries;
    for (const std::string& key : keys) {
        Trie::Entry entry;
        for (const char byte : key) entry.key.push_back(static_cast<unsigned char>(byte) + 1u);
        entries.push_back(std::move(entry));
    }
    return Trie(std::move(entries), 257);
}

// Length of the longest key at the start of `text`, of the `max_keys` shortest ones; 0: none.
size_t longest_key(const Trie& trie, std::string_view text, size_t max_keys) {
    size_t found = 0, num_keys = 0;
    uint32_t node = Trie::kRoot;
    for (size_t length = 0; length < text.size() && num_keys < max_keys; ++length) {
        node = trie.child(node, static_cast<unsigned char>(text[length]) + 1u);
        if (node == Trie::kRoot) break;
        if (trie.nodes()[node].value == Trie::kNoValue) continue;
        found = length + 1;
        ++num_keys;
    }
    return found;
}

}  // namespace

struct Normalizer::Tables {
    static constexpr size_t kMaxSymbols = 64;  // that match at one place: sentencepiece sees the shortest ones
    static constexpr uint8_t kAlways = 255;

    bool add_space, space_is_suffix, remove_extra_spaces;
    std::string_view space;
    char padded_space[4] = {};
    Trie symbols;
    Charsmap rules;
    // So many bytes decide on what they begin with: a character and the byte after it, or the longest rule or symbol.
    size_t lookahead = 5;

    // A character stands for itself unless masks[classes[character]] has the bit of the byte that follows it.
    CodePointTable<uint8_t> classes;
    std::vector<uint64_t> masks;  // kAlways: all bits
    uint64_t ascii_masks[128];

    Tables(const ModelFile& model, const std::vector<std::string>& symbol_texts);

  private:
    void classify(const CodePointTable<uint64_t>& mask_of);
};

Normalizer::Tables::Tables(const ModelFile& model, const std::vector<std::string>& symbol_texts)
    : add_space(model.add_dummy_prefix),
      space_is_suffix(model.treat_whitespace_as_suffix),
      remove_extra_spaces(model.remove_extra_whitespaces),
      space(model.escape_whitespaces ? kSpaceMark : std::string_view(" ")),
      symbols(byte_trie(symbol_texts)),
      rules(model.precompiled_charsmap) {
    // Symbols and rules that begin with an invalid byte need no mask: such a byte always ends a run.
    CodePointTable<uint64_t> mask_of;
    for (const std::string& text : symbol_texts) {
        lookahead = std::max(lookahead, text.size());
        const size_t length = valid_length(text);
        if (text.size() > length) mask_of.at(code_point(text.data(), length)) |= bit_of(text[length]);
    }
    lookahead = std::max(lookahead, rules.longest_rule());
    rules.visit_first_characters([&](std::string_view character, bool changes, const std::string& next) {
        uint64_t& mask = mask_of.at(code_point(character.data(), character.size()));
        for (const char byte : next) mask |= bit_of(byte);
        if (changes) mask = ~uint64_t{0};
    });
    std::copy(space.begin(), space.end(), padded_space);
    // Encoded surrogates are not characters.
    for (uint32_t point = 0xD800; point < 0xE000; ++point) mask_of.at(point) = ~uint64_t{0};
    classify(mask_of);
}

void Normalizer::Tables::classify(const CodePointTable<uint64_t>& mask_of) {
    masks.assign(256, ~uint64_t{0});
    masks[0] = 0;
    size_t num_masks = 1;
    for (uint32_t prefix = 0; prefix < CodePointTable<uint64_t>::kNumCodePoints / 64; ++prefix) {
        if (mask_of.block(prefix) == 0) continue;
        for (uint32_t point = 64 * prefix; point < 64 * prefix + 64; ++point) {
            const uint64_t mask = mask_of[point];
            if (mask == 0) continue;
            size_t index = kAlways;
            if (mask != ~uint64_t{0}) {
                index = static_cast<size_t>(std::find(masks.begin(), masks.begin() + num_masks, mask) - masks.begin());
                if (index == num_masks && index < kAlways) masks[num_masks++] = mask;
            }
            classes.at(point) = static_cast<uint8_t>(index);
        }
    }
    for (uint32_t point = 0; point < 128; ++point) ascii_masks[point] = mask_of[point];
}

// Collects many short pieces of text for a string.
class Normalizer::Writer {
  public:
    explicit Writer(std::string& out) : out_(out) {}

    // Four bytes can be written at room(), and where flush() says, as long as that is below full().
    char* room() { return next_ < full() ? next_ : flush(next_); }
    const char* full() const { return buffer_ + kSize; }
    char* flush(char* end) {
        out_.append(buffer_, static_cast<size_t>(end - buffer_));
        return next_ = buffer_;
    }
    void flush() { flush(next_); }
    void wrote(char* end) { next_ = end; }

    void append(std::string_view text) {
        if (text.size() > static_cast<size_t>(buffer_ + sizeof(buffer_) - next_)) flush(next_);
        if (text.size() > sizeof(buffer_)) {
            out_.append(text);
        } else {
            std::memcpy(next_, text.data(), text.size());
            next_ += text.size();
        }
    }

  private:
    static constexpr size_t kSize = 4096;

    std::string& out_;
    char buffer_[kSize + 4];
    char* next_ = buffer_;
};

// What the text begins with: `length` bytes that become `result`.
struct Normalizer::Prefix {
    std::string_view result;
    size_t length;
};

Normalizer::Normalizer(const ModelFile& model) {
    std::vector<std::string> symbol_texts;
    for (const Piece& piece : model.pieces) {
        if (piece.type != PieceType::kUserDefined) continue;
        if (!whole_characters(piece.text)) throw std::runtime_error("a user-defined symbol of the model is not UTF-8");
        symbol_texts.push_back(piece.text);
    }
    tables_ = std::make_unique<const Tables>(model, symbol_texts);
}

Normalizer::~Normalizer() = default;

bool Normalizer::only_escapes_spaces() const {
    const Tables& tables = *tables_;
    return tables.rules.empty() && !tables.add_space && !tables.remove_extra_spaces && tables.space == kSpaceMark;
}

void Normalizer::push(std::string_view text, bool last, State& state, std::string& out) const {
    const size_t out_start = out.size();
    if (!state.unread.empty()) {
        // What is left of the part before is decided with the first bytes of this one.
        const size_t num_old = state.unread.size();
        const size_t num_taken = std::min(text.size(), tables_->lookahead);
        state.unread.append(text.substr(0, num_taken));
        if (num_taken < tables_->lookahead) {
            state.unread.erase(0, run(state.unread, state.unread.size(), last, state, out));
            text = std::string_view();
        } else {
            text.remove_prefix(run(state.unread, num_old, false, state, out) - num_old);
            state.unread.clear();
        }
    }
    const size_t num_read = run(text, text.size(), last, state, out);
    if (state.unread.empty()) state.unread.assign(text.substr(num_read));
    if (tables_->remove_extra_spaces) hold_back(out_start, last, state, out);
    if (last && state.started && tables_->add_space && tables_->space_is_suffix) out.append(tables_->space);
}

// Normalises what begins before `until`, as far as it is decided; returns the bytes read.
size_t Normalizer::run(std::string_view text, size_t until, bool last, State& state, std::string& out) const {
    const Tables& tables = *tables_;
    Writer writer(out);
    size_t at = 0;
    while (true) {
        if (state.started) at += copy_run(text.substr(at), state, writer);
        if (at >= until || (!last && text.size() - at < tables.lookahead)) break;
        const Prefix prefix = read_prefix(text.substr(at));
        at += prefix.length;
        if (!state.started) {
            if (tables.remove_extra_spaces && prefix.result == " ") continue;
            state.started = true;
            state.previous_space = tables.remove_extra_spaces;
            if (tables.add_space && !tables.space_is_suffix) writer.append(tables.space);
        }
        append(prefix.result, state, writer);
    }
    writer.flush();
    return at;
}

// Copies the characters at the start of `text` that stand for themselves, and marks the spaces between them; returns
// the bytes read. Whether a longer rule or symbol begins is seen from the next byte, so five bytes decide on a
// character.
size_t Normalizer::copy_run(std::string_view text, State& state, Writer& writer) const {
    const Tables& tables = *tables_;
    const auto* const begin = reinterpret_cast<const unsigned char*>(text.data());
    const auto* const end = begin + text.size();
    const auto* at = begin;
    char* to = writer.room();
    bool previous_space = state.previous_space;
    while (end - at >= 5) {
        const unsigned char lead = at[0];
        size_t length = 1;
        uint64_t mask;
        if (lead < 0x80) {
            mask = tables.ascii_masks[lead];
        } else if ((lead & 0xF0) == 0xE0) {
            const uint32_t prefix = (lead & 0x0Fu) << 6 | (at[1] & 0x3Fu);
            if ((at[1] & 0xC0) != 0x80 || (at[2] & 0xC0) != 0x80 || prefix < 0x20) break;
            length = 3;
            const uint16_t block = tables.classes.block(prefix);
            mask = block == 0 ? 0 : tables.masks[tables.classes.in_block(block, at[2])];
        } else {
            const char* const character = reinterpret_cast<const char*>(at);
            length = valid_length(std::string_view(character, 4));
            if (length == 0) break;
            mask = tables.masks[tables.classes[code_point(character, length)]];
        }
        if ((mask >> (at[length] >> 2) & 1) != 0) break;
        if (lead == ' ') {
            if (!previous_space) {
                std::memcpy(to, tables.padded_space, 4);
                to += tables.space.size();
            }
            previous_space = tables.remove_extra_spaces;
        } else {
            std::memcpy(to, at, 4);
            to += length;
            previous_space = false;
        }
        at += length;
        if (to >= writer.full()) to = writer.flush(to);
    }
    state.previous_space = previous_space;
    writer.wrote(to);
    return static_cast<size_t>(at - begin);
}

Normalizer::Prefix Normalizer::read_prefix(std::string_view rest) const {
    const Tables& tables = *tables_;
    const size_t symbol = longest_key(tables.symbols, rest, Tables::kMaxSymbols);
    if (symbol != 0) return {rest.substr(0, symbol), symbol};
    const Charsmap::Match rule = tables.rules.longest(rest);
    if (rule.length != 0) return {rule.replacement, rule.length};
    const size_t length = valid_length(rest);
    if (length == 0) return {kReplacementMark, 1};
    return {rest.substr(0, length), length};
}

// Appends what a prefix became, with its spaces marked, and without those at its start where a space came before.
void Normalizer::append(std::string_view result, State& state, Writer& writer) const {
    const Tables& tables = *tables_;
    while (state.previous_space && !result.empty() && result[0] == ' ') result.remove_prefix(1);
    if (!result.empty()) {
        state.previous_space = tables.remove_extra_spaces && result.back() == ' ';
    }
    for (size_t start = 0; start < result.size();) {
        const size_t space = std::min(result.find(' ', start), result.size());
        writer.append(result.substr(start, space - start));
        if (space < result.size()) writer.append(tables.space);
        start = space + 1;
    }
}

// Space marks at the end of the document so far, also those that stand in the text itself, wait for what follows them.
void Normalizer::hold_back(size_t out_start, bool last, State& state, std::string& out) const {
    const std::string_view space = tables_->space;
    size_t end = out.size();
    size_t num_spaces = 0;
    while (end - out_start >= space.size() &&
           std::string_view(out).substr(0, end).substr(end - space.size()) == space) {
        end -= space.size();
        ++num_spaces;
    }
    out.resize(end);
    if (end > out_start && state.num_held_back > 0) {
        std::string held;
        for (size_t index = 0; index < state.num_held_back; ++index) held.append(space);
        out.insert(out_start, held);
        state.num_held_back = 0;
    }
    state.num_held_back = last ? 0 : state.num_held_back + num_spaces;
}

}  // namespace megagpt
