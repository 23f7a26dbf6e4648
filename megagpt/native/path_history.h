// The best paths through a long run of text while it is open which one of them it will be: packed, because they only
// stay apart for long where the run is periodic (a line of dashes), and so are they. Knows nothing of scores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace megagpt {

// A piece of a path: an id, or the character of an unknown one.
class PackedPiece {
  public:
    explicit PackedPiece(int32_t id) : code_(id) {}
    explicit PackedPiece(std::string_view unknown);  // up to 4 bytes

    bool is_unknown() const { return code_ < 0; }
    int32_t id() const { return static_cast<int32_t>(code_); }
    std::string_view unknown(char (&buffer)[4]) const;
    bool operator==(const PackedPiece& other) const { return code_ == other.code_; }

  private:
    int64_t code_;  // negative: ~(length << 32 | bytes)
};

class PathHistory {
  public:
    bool empty() const { return blocks_.empty(); }
    void clear() { blocks_.clear(); }
    void begin_block() { blocks_.emplace_back(); }
    // A path of this block: it continues path `before` of the block before (any number in the first block) with
    // `pieces`. Returns its number in the block.
    size_t add(size_t before, const std::vector<PackedPiece>& pieces);
    // All pieces of a path of the last block, from the first block on.
    void visit(size_t path, const std::function<void(PackedPiece)>& visitor) const;

  private:
    // `length` pieces, each the same as the one `distance` pieces before it, or one piece where `distance` is 0.
    struct Step {
        PackedPiece piece;
        uint32_t distance, length;
    };
    struct Path {
        size_t before;
        std::vector<Step> steps;
    };
    std::vector<std::vector<Path>> blocks_;
};

}  // namespace megagpt
