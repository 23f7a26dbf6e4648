#include <algorithm>
#include <limits>
#include <queue>

#include "path_history.h"
#include "unigram_internal.h"
#include "utf8.h"

namespace megagpt {
namespace {

constexpr float kScoreLimit = 100000.0f;                            // kScoreResetThreshold
constexpr float kNoPath = -std::numeric_limits<float>::infinity();  // to a node
constexpr size_t kBlock = 2048;                                     // characters decoded at once
constexpr size_t kLongRun = size_t{1} << 16;                        // characters without a cut
constexpr size_t kTail = 4096;                                      // the last of them, which are not packed
constexpr size_t kNoNode = ~size_t{0};

}  // namespace

size_t Unigram::Walk::run() {
    for (;;) {
        const size_t decoded_before = decoded_;
        decode();
        const bool ended = last_ && decoded_ == text_.size();
        // From a node pieces are looked up once as many characters are there as the longest piece has.
        const size_t num_behind = ended ? 0 : std::min(state_.num_symbols, tables_.longest - 1);
        advance(state_.num_symbols - num_behind);
        if (ended) {
            give_path(state_.num_symbols);
            break;
        }
        if (decoded_ == decoded_before) break;
        if (state_.num_symbols - state_.first < kLongRun) continue;
        if (const size_t node = common_node(); node != kNoNode) give_path(node);
        if (state_.num_symbols - state_.first > kLongRun / 2) pack();
    }
    state_.num_decoded_bytes = decoded_ - passed_;
    return passed_;
}

// Forgets what was given out and reads the next block of characters.
void Unigram::Walk::decode() {
    if (const size_t first = state_.first; first > 0) {
        const size_t end = state_.num_symbols + 1;
        std::copy(&state_.symbols[first], &state_.symbols[0] + end, &state_.symbols[0]);
        std::copy(&state_.scores[first], &state_.scores[0] + end, &state_.scores[0]);
        std::copy(&state_.edges[first], &state_.edges[0] + end, &state_.edges[0]);
        state_.num_symbols -= first;
        state_.next -= first;
        state_.frontier -= first;
        state_.first = 0;
    }
    const size_t size = state_.num_symbols + kBlock + 1;
    if (state_.symbols.size() < size) {
        state_.symbols.resize(size);
        state_.scores.resize(size);
        state_.edges.resize(size);
    }
    uint32_t* symbol = &state_.symbols[state_.num_symbols];
    uint32_t* const end = symbol + kBlock;
    while (symbol < end && decoded_ < text_.size()) {
        const auto* at = reinterpret_cast<const unsigned char*>(text_.data()) + decoded_;
        const uint32_t prefix = (at[0] & 0x0Fu) << 6;
        if (at[0] < 0x80) {
            *symbol++ = tables_.symbols[at[0]];
            decoded_ += 1;
        } else if ((at[0] & 0xF0) == 0xE0 && text_.size() - decoded_ >= 3 && (at[1] & 0xC0) == 0x80 &&
                   (at[2] & 0xC0) == 0x80 && (prefix | (at[1] & 0x3Fu)) >= 0x20) {
            *symbol++ = tables_.symbols.in_block(tables_.symbols.block(prefix | (at[1] & 0x3Fu)), at[2]);
            decoded_ += 3;
        } else {
            if (!last_ && text_.size() - decoded_ < announced_length(text_[decoded_])) break;
            *symbol++ = decode_character();
        }
    }
    *symbol = 0;
    const size_t num_symbols = static_cast<size_t>(symbol - &state_.symbols[0]);
    std::fill(&state_.scores[state_.num_symbols + 1], &state_.scores[num_symbols] + 1, kNoPath);
    state_.num_symbols = num_symbols;
}

// What is not UTF-8, as a damaged model's rules may leave it, is cut as its first bytes say and is in no piece.
uint32_t Unigram::Walk::decode_character() {
    const std::string_view rest = text_.substr(decoded_);
    const size_t length = std::min(announced_length(rest[0]), rest.size());
    decoded_ += length;
    return valid_length(rest) == length ? tables_.symbols[code_point(rest.data(), length)] : 0;
}

// Looks up the pieces from the nodes before `stop`.
void Unigram::Walk::advance(size_t stop) {
    const Trie::Node* const nodes = tables_.trie->nodes();
    const uint32_t root_base = nodes[Trie::kRoot].base;
    const uint32_t* const symbols = state_.symbols.data();
    float* const scores = state_.scores.data();
    int32_t* const edges = state_.edges.data();
    const float unknown_score = tables_.unknown_score;
    size_t frontier = state_.frontier;
    size_t node = state_.next;
    for (; node < stop; ++node) {
        if (node == frontier) cut(node);
        if (scores[node] < -kScoreLimit || scores[node] > kScoreLimit) reset_scores(node, frontier);
        const float score = scores[node];
        // Of equal paths the one whose last piece begins first is kept.
        auto lead_to = [&](size_t target, float piece_score, int32_t edge) {
            const float path_score = score + piece_score;
            if (path_score > scores[target]) {
                scores[target] = path_score;
                edges[target] = edge;
            }
        };
        uint32_t at = root_base + symbols[node];
        size_t end = node + 1;
        frontier = std::max(frontier, end);
        if (nodes[at].parent != Trie::kRoot) {
            lead_to(end, unknown_score, kUnknown);
            continue;
        }
        const bool is_piece = nodes[at].value != Trie::kNoValue;
        lead_to(end, is_piece ? nodes[at].weight : unknown_score, is_piece ? nodes[at].value : kUnknown);
        while (nodes[at].base != 0) {
            const uint32_t child = nodes[at].base + symbols[end];
            if (nodes[child].parent != at) break;
            at = child;
            ++end;
            if (nodes[at].value == Trie::kNoValue) continue;
            lead_to(end, nodes[at].weight, nodes[at].value);
            frontier = std::max(frontier, end);
        }
    }
    state_.frontier = frontier;
    state_.next = node;
}

// sentencepiece keeps the sums small, which changes how they are rounded: all live nodes' scores are taken relative to
// this one's.
void Unigram::Walk::reset_scores(size_t node, size_t frontier) {
    const float offset = state_.scores[node];
    for (size_t live = node; live <= frontier; ++live) state_.scores[live] -= offset;
}

// Every path leads to `node`.
void Unigram::Walk::cut(size_t node) {
    if (node == state_.first + 1) {
        give_piece(state_.edges[node]);
        state_.first = node;
    } else if (node != state_.first) {
        give_path(node);
    }
}

// Length of the piece at byte `at`.
size_t Unigram::Walk::piece_bytes(int32_t edge, size_t at) const {
    if (edge != kUnknown) return tables_.sizes[static_cast<size_t>(edge)].num_bytes;
    return std::min(announced_length(text_[at]), text_.size() - at);
}

void Unigram::Walk::give_piece(int32_t edge) {
    const size_t length = piece_bytes(edge, passed_);
    sink_.piece(edge == kUnknown ? tables_.unknown_id : edge, text_.substr(passed_, length));
    passed_ += length;
}

void Unigram::Walk::give_packed(PackedPiece piece) {
    char buffer[4];
    if (piece.is_unknown()) {
        sink_.piece(tables_.unknown_id, piece.unknown(buffer));
    } else {
        sink_.piece(piece.id(), tables_.text(piece.id()));
    }
}

// Gives out the path to `node`, where all paths meet.
void Unigram::Walk::give_path(size_t node) {
    const size_t begin = trace(node);
    if (!state_.history.empty()) {
        state_.history.visit(static_cast<size_t>(kPacked - state_.edges[begin]),
                             [&](PackedPiece piece) { give_packed(piece); });
        state_.history.clear();
        skip_to(begin);
    }
    for (size_t index = state_.path.size(); index > 0; --index) give_piece(state_.path[index - 1]);
    state_.first = node;
}

size_t Unigram::Walk::node_before(size_t node) const {
    const int32_t edge = state_.edges[node];
    return node - (edge == kUnknown ? 1 : tables_.sizes[static_cast<size_t>(edge)].num_characters);
}

// Sets `path` to the pieces, the last one first, that lead to `node` from the node returned: `first`, or one with a
// packed path.
size_t Unigram::Walk::trace(size_t node) {
    state_.path.clear();
    while (node > state_.first && state_.edges[node] > kPacked) {
        state_.path.push_back(state_.edges[node]);
        node = node_before(node);
    }
    return node;
}

// Moves `first` to `node`, whose path is packed or not needed.
void Unigram::Walk::skip_to(size_t node) {
    for (; state_.first < node; ++state_.first) passed_ += piece_bytes(kUnknown, passed_);
}

// The nodes from which paths can go on.
std::vector<size_t> Unigram::Walk::live_nodes() const {
    std::vector<size_t> nodes;
    for (size_t node = state_.next; node <= state_.frontier; ++node) {
        if (state_.scores[node] != kNoPath) nodes.push_back(node);
    }
    return nodes;
}

// The last node that all paths share, if there is one: what lies before it is decided though pieces span it.
size_t Unigram::Walk::common_node() const {
    const std::vector<size_t> nodes = live_nodes();
    std::priority_queue<size_t> paths(nodes.begin(), nodes.end());
    while (true) {
        const size_t node = paths.top();
        while (!paths.empty() && paths.top() == node) paths.pop();
        if (paths.empty()) return node;
        if (state_.edges[node] <= kPacked) return kNoNode;
        paths.push(node_before(node));
    }
}

// Moves all but the run's tail into the history. Most of the paths come together in the tail; the others are few.
// kLongRun / 2 is more than the tail and two of the longest pieces: the paths packed before end before the tail begins.
void Unigram::Walk::pack() {
    const size_t begin = state_.next - kTail;
    std::vector<size_t> entries;  // where the live paths enter the tail
    for (size_t node : live_nodes()) {
        for (size_t before = node_before(node); before >= begin; before = node_before(node)) node = before;
        entries.push_back(node);
    }
    std::sort(entries.begin(), entries.end());
    entries.erase(std::unique(entries.begin(), entries.end()), entries.end());
    const bool is_first = state_.history.empty();
    state_.history.begin_block();
    std::vector<PackedPiece> pieces;
    for (const size_t entry : entries) {
        const size_t start = trace(entry);
        size_t at = passed_;
        for (size_t node = state_.first; node < start; ++node) at += piece_bytes(kUnknown, at);
        pieces.clear();
        for (size_t index = state_.path.size(); index > 0; --index) {
            const int32_t edge = state_.path[index - 1];
            const size_t length = piece_bytes(edge, at);
            pieces.push_back(edge == kUnknown ? PackedPiece(text_.substr(at, length)) : PackedPiece(edge));
            at += length;
        }
        const size_t before = is_first ? 0 : static_cast<size_t>(kPacked - state_.edges[start]);
        state_.edges[entry] = kPacked - static_cast<int32_t>(state_.history.add(before, pieces));
    }
    skip_to(begin);
}

}  // namespace megagpt
