#include "unigram.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <unordered_map>

#include "unigram_internal.h"
#include "utf8.h"

namespace megagpt {
namespace {

constexpr float kUnknownPenalty = 10.0f;  // kUnkPenalty
constexpr float kLargestScore = 1e30f;    // no sum becomes infinite below it
constexpr size_t kMaxPieceBytes = 8000;   // sentencepiece's limit

// A user-defined symbol is preferred to any path of normal pieces, whose scores are negative, and a longer one to a
// shorter one (GetUserDefinedScore). It is bytes that count.
float score_of(const Piece& piece) {
    if (piece.type != PieceType::kUserDefined) return piece.score;
    return static_cast<float>(0.1 * (static_cast<int>(piece.text.size()) - 1));
}

std::u32string code_points(std::string_view text) {
    std::u32string points;
    while (!text.empty()) {
        const size_t length = valid_length(text);
        if (length == 0) throw std::runtime_error("a piece of the model is not UTF-8");
        points.push_back(code_point(text.data(), length));
        text.remove_prefix(length);
    }
    return points;
}

}  // namespace

Unigram::Tables::Tables(const ModelFile& model) : sizes(model.pieces.size()), unknown_id(model.unknown_id) {
    std::vector<Trie::Entry> entries;
    float lowest = FLT_MAX;
    for (size_t id = 0; id < model.pieces.size(); ++id) {
        const Piece& piece = model.pieces[id];
        if (piece.type != PieceType::kNormal && piece.type != PieceType::kUserDefined) continue;
        // Some converters leave such a piece behind; sentencepiece passes it over too.
        if (piece.text == std::string(1, '\0')) continue;
        if (!(std::fabs(piece.score) <= kLargestScore)) throw std::runtime_error("a piece's score is too large");
        if (piece.text.size() >= kMaxPieceBytes) throw std::runtime_error("a piece of the model is too long");
        if (piece.type == PieceType::kNormal) lowest = std::min(lowest, piece.score);
        std::u32string points = code_points(piece.text);
        sizes[id] = {static_cast<uint16_t>(piece.text.size()), static_cast<uint16_t>(points.size()),
                     static_cast<uint32_t>(texts.size())};
        texts += piece.text;
        longest = std::max(longest, points.size());
        entries.push_back({std::move(points), static_cast<int32_t>(id), score_of(piece)});
    }
    if (lowest == FLT_MAX) throw std::runtime_error("the model has no normal piece");
    unknown_score = lowest - kUnknownPenalty;
    number_symbols(entries);
}

// Characters become numbers from 1 on; those that most pieces have get the lowest ones, which makes the trie denser.
void Unigram::Tables::number_symbols(std::vector<Trie::Entry>& entries) {
    std::unordered_map<char32_t, size_t> counts;
    for (const Trie::Entry& entry : entries) {
        for (const char32_t point : entry.key) ++counts[point];
    }
    std::vector<std::pair<size_t, char32_t>> order;
    for (const auto& [point, count] : counts) order.emplace_back(count, point);
    std::sort(order.begin(), order.end(), std::greater<>());
    uint32_t number = 0;
    for (const auto& [count, point] : order) symbols.at(point) = ++number;
    for (Trie::Entry& entry : entries) {
        for (char32_t& point : entry.key) point = symbols[point];
    }
    trie = std::make_unique<const Trie>(std::move(entries), static_cast<uint32_t>(order.size() + 1));
}

Unigram::Unigram(const ModelFile& model) : tables_(std::make_unique<const Tables>(model)) {}
Unigram::~Unigram() = default;

void Unigram::State::reset() {
    unread.clear();
    num_decoded_bytes = num_symbols = first = next = frontier = 0;
    if (!scores.empty()) scores[0] = 0;
    history.clear();
}

void Unigram::encode(std::string_view text, bool last, State& state, PieceSink& sink) const {
    if (state.unread.empty()) {
        state.unread.assign(text.substr(Walk(*tables_, text, last, state, sink).run()));
    } else {
        state.unread.append(text);
        state.unread.erase(0, Walk(*tables_, state.unread, last, state, sink).run());
    }
}

}  // namespace megagpt
