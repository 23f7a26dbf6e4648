// How Bpe's tables are made from a model.
#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>

#include "bpe.h"
#include "bpe_hash.h"
#include "utf8.h"

namespace megagpt {
namespace {

constexpr uint32_t kSpaceMarkCharacter = 0x2581;
constexpr size_t kMostSymbols = size_t{1} << 21;  // what a pair's 21 bits can name
constexpr size_t kMostSpaceMarkIds = 12;
constexpr size_t kMostNested = 64;  // symbols that match at one place: sentencepiece sees the shortest

// Scores in sentencepiece's order (bpe_model.cc compares their bits): the higher, the better.
int64_t order_of(float score) {
    int32_t bits;
    std::memcpy(&bits, &score, 4);
    return bits >= 0 ? bits : -static_cast<int64_t>(bits & 0x7FFFFFFF) - 1;
}

std::vector<uint32_t> characters_of(const std::string& text) {
    std::vector<uint32_t> characters;
    std::string_view rest(text);
    while (!rest.empty()) {
        const size_t length = valid_length(rest);
        if (length == 0) throw std::runtime_error("a piece of the model is not UTF-8");
        characters.push_back(code_point(rest.data(), length));
        rest.remove_prefix(length);
    }
    return characters;
}

int bits_for(size_t count) {
    int bits = 6;
    while ((size_t{1} << bits) < count) ++bits;
    return bits;
}

}  // namespace

Bpe::Bpe(const ModelFile& model, bool raw, std::vector<int> space_mark_ids)
    : raw_(raw),
      byte_fallback_(model.byte_fallback),
      unknown_id_(model.unknown_id),
      space_mark_ids_(std::move(space_mark_ids)),
      low_characters_(0x800),
      basic_plane_(0x10000, kNoCharacter) {
    std::copy(std::begin(model.byte_ids), std::end(model.byte_ids), std::begin(byte_ids_));
    for (uint32_t character = 0; character < basic_plane_.size(); ++character) {
        const bool is_surrogate = character >= 0xD800 && character < 0xE000;
        if (!is_surrogate) set_symbol(character, kUnknown | character);
    }
    if (space_mark_ids_.size() > kMostSpaceMarkIds) throw std::runtime_error("too many ids for a U+2581");
    most_ids_ = std::max(size_t{4}, space_mark_ids_.size());  // an unknown character becomes four bytes
    add_pairs(model, number_symbols(model));
    add_user_symbols(model);
    if (raw_) {
        set_symbol(' ', symbol_of(kSpaceMarkCharacter));
        if (!space_mark_ids_.empty()) set_symbol(kSpaceMarkCharacter, kSpaceMark);
    }
    piece_characters_.clear();
    piece_characters_.shrink_to_fit();
}

// Gives every character of a piece its symbol, and a mark to those that stand only alone. Returns the pieces of several
// characters, best first.
std::vector<int> Bpe::number_symbols(const ModelFile& model) {
    std::vector<int> joined;
    vocab_size_ = static_cast<uint32_t>(model.pieces.size());
    piece_characters_.resize(vocab_size_);
    for (size_t id = 0; id < vocab_size_; ++id) {
        const Piece& piece = model.pieces[id];
        if (piece.type != PieceType::kNormal) continue;
        std::vector<uint32_t> characters = characters_of(piece.text);
        if (characters.size() > 1) {
            joined.push_back(static_cast<int>(id));
        } else {
            set_symbol(characters[0], kAlone | static_cast<uint32_t>(id));
        }
        piece_characters_[id] = std::move(characters);
    }
    auto order = [&](int id) { return order_of(model.pieces[id].score); };
    std::stable_sort(joined.begin(), joined.end(), [&](int one, int other) { return order(one) > order(other); });
    bool in_order = true;
    rank_.resize(vocab_size_);
    for (size_t place = 0; place < joined.size(); ++place) {
        const bool tie = place > 0 && order(joined[place]) == order(joined[place - 1]);
        rank_[joined[place]] = tie ? rank_[joined[place - 1]] : static_cast<uint32_t>(place);
        in_order = in_order && !tie && (place == 0 || joined[place] > joined[place - 1]);
    }
    if (in_order) rank_.clear();
    for (int id : joined) {
        for (uint32_t character : piece_characters_[id]) {
            const uint32_t now = symbol_of(character);
            if (now < kAlone) continue;
            set_symbol(character,
                       now < kUnknown ? now & ~kAlone : vocab_size_ + static_cast<uint32_t>(characters_.size()));
            if (now >= kUnknown) characters_.push_back(character);
        }
    }
    if (vocab_size_ + characters_.size() >= kMostSymbols)
        throw std::runtime_error("the vocabulary is too large for the native core");
    return joined;
}

// Every way to join two symbols into a piece, and which characters some piece has side by side.
void Bpe::add_pairs(const ModelFile& model, const std::vector<int>& joined_ids) {
    std::unordered_map<std::string_view, uint32_t> symbol_of_text;
    size_t num_splits = 0;
    for (int id : joined_ids) {
        symbol_of_text.emplace(model.pieces[id].text, static_cast<uint32_t>(id));
        num_splits += piece_characters_[id].size() - 1;
    }
    struct Pair {
        uint32_t left, right, joined;
    };
    std::vector<Pair> found;
    neighbours_shift_ = 64 - bits_for(num_splits / 4);
    neighbours_.assign(size_t{1} << (64 - neighbours_shift_), 0);
    for (int joined : joined_ids) {
        const std::string_view text = model.pieces[joined].text;
        const std::vector<uint32_t>& characters = piece_characters_[joined];
        size_t offset = 0;
        for (size_t split = 1; split < characters.size(); ++split) {
            offset += announced_length(text[offset]);
            allow_neighbours(symbol_of(characters[split - 1]), symbol_of(characters[split]));
            auto part = [&](std::string_view piece, bool single, uint32_t character) {
                if (single) return symbol_of(character);
                const auto at = symbol_of_text.find(piece);
                return at == symbol_of_text.end() ? kNone : at->second;
            };
            const uint32_t left = part(text.substr(0, offset), split == 1, characters[0]);
            const uint32_t right = part(text.substr(offset), split + 1 == characters.size(), characters.back());
            if (left != kNone && right != kNone) {
                found.push_back({left, right, static_cast<uint32_t>(joined)});
            }
        }
    }
    pairs_shift_ = 64 - bits_for(found.size() * 2);
    pairs_.assign((size_t{1} << (64 - pairs_shift_)) + 2, kEmpty);
    for (const Pair& pair : found) insert_pair(pair.left, pair.right, pair.joined);
}

// User-defined symbols are found before all else, the longest first, and are never joined.
void Bpe::add_user_symbols(const ModelFile& model) {
    std::map<uint32_t, std::vector<UserSymbol>> by_first;
    for (size_t id = 0; id < model.pieces.size(); ++id) {
        const Piece& piece = model.pieces[id];
        if (piece.type != PieceType::kUserDefined) continue;
        const bool has_space =
            piece.text.find("\xE2\x96\x81") != std::string::npos || piece.text.find(' ') != std::string::npos;
        if (raw_ && has_space) {
            throw std::runtime_error("a user-defined symbol with a space needs normalised text");
        }
        by_first[characters_of(piece.text)[0]].push_back({piece.text, static_cast<int>(id)});
        longest_user_symbol_ = std::max(longest_user_symbol_, piece.text.size());
    }
    for (auto& [character, symbols] : by_first) {
        std::vector<UserSymbol> seen;
        for (const UserSymbol& symbol : symbols) {
            size_t num_shorter = 0;  // that it begins with
            for (size_t other = 0; symbol.text.size() > kMostNested && other < symbols.size(); ++other) {
                const std::string& text = symbols[other].text;
                num_shorter += text.size() < symbol.text.size() && symbol.text.compare(0, text.size(), text) == 0;
            }
            if (num_shorter < kMostNested) seen.push_back(symbol);
        }
        symbols = std::move(seen);  // the shortest is always in it
        std::stable_sort(symbols.begin(), symbols.end(), [](const UserSymbol& one, const UserSymbol& other) {
            return one.text.size() > other.text.size();
        });
        const bool alone = symbols.size() == 1 && symbols[0].text.size() == valid_length(symbols[0].text);
        if (alone) {
            set_symbol(character, kAlone | static_cast<uint32_t>(symbols[0].id));
        } else {
            const uint32_t otherwise = symbol_of(character);
            set_symbol(character, kSymbolStart | static_cast<uint32_t>(starts_.size()));
            starts_.push_back({std::move(symbols), otherwise});
        }
    }
}

void Bpe::set_symbol(uint32_t code_point, uint32_t symbol) {
    if (code_point < low_characters_.size()) {
        low_characters_[code_point] = symbol;
    } else if (code_point < basic_plane_.size()) {
        basic_plane_[code_point] = symbol;
    } else {
        other_planes_[code_point] = symbol;
    }
}

}  // namespace megagpt
