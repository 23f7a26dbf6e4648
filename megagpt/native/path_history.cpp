#include "path_history.h"

#include <algorithm>

namespace megagpt {
namespace {

constexpr size_t kMaxDistance = 64;
constexpr size_t kMinLength = 4;  // below it a step takes more room than the pieces

}  // namespace

PackedPiece::PackedPiece(std::string_view unknown) {
    int64_t code = static_cast<int64_t>(unknown.size()) << 32;
    for (size_t index = 0; index < unknown.size(); ++index) {
        code |= static_cast<int64_t>(static_cast<unsigned char>(unknown[index])) << (8 * index);
    }
    code_ = ~code;
}

std::string_view PackedPiece::unknown(char (&buffer)[4]) const {
    const int64_t code = ~code_;
    for (size_t index = 0; index < 4; ++index) buffer[index] = static_cast<char>(code >> (8 * index));
    return {buffer, static_cast<size_t>(code >> 32)};
}

size_t PathHistory::add(size_t before, const std::vector<PackedPiece>& pieces) {
    Path path{before, {}};
    for (size_t at = 0; at < pieces.size();) {
        size_t best_length = 0, best_distance = 0;
        for (size_t distance = 1; distance <= std::min(at, kMaxDistance) && best_length < kMinLength; ++distance) {
            size_t end = at;
            while (end < pieces.size() && pieces[end] == pieces[end - distance]) ++end;
            if (end - at > best_length) {
                best_length = end - at;
                best_distance = distance;
            }
        }
        if (best_length < kMinLength) {
            path.steps.push_back({pieces[at], 0, 1});
            at += 1;
        } else {
            path.steps.push_back(
                {pieces[at], static_cast<uint32_t>(best_distance), static_cast<uint32_t>(best_length)});
            at += best_length;
        }
    }
    path.steps.shrink_to_fit();
    blocks_.back().push_back(std::move(path));
    return blocks_.back().size() - 1;
}

void PathHistory::visit(size_t path, const std::function<void(PackedPiece)>& visitor) const {
    std::vector<size_t> numbers(blocks_.size());
    for (size_t block = blocks_.size(); block > 0; --block) {
        numbers[block - 1] = path;
        path = blocks_[block - 1][path].before;
    }
    std::vector<PackedPiece> pieces;
    for (size_t block = 0; block < blocks_.size(); ++block) {
        pieces.clear();
        for (const Step& step : blocks_[block][numbers[block]].steps) {
            for (uint32_t count = 0; count < step.length; ++count) {
                pieces.push_back(step.distance == 0 ? step.piece : pieces[pieces.size() - step.distance]);
            }
        }
        for (const PackedPiece piece : pieces) visitor(piece);
    }
}

}  // namespace megagpt
