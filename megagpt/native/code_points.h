// A value for each code point, most of them the default: a table in blocks of 64, which is what the bytes of a
// character but its last one say.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "utf8.h"

namespace megagpt {

inline bool whole_characters(std::string_view text) {
    while (!text.empty()) {
        const size_t length = valid_length(text);
        if (length == 0) return false;
        text.remove_prefix(length);
    }
    return true;
}

template <typename Value>
class CodePointTable {
  public:
    static constexpr uint32_t kNumCodePoints = 0x110000;

    CodePointTable() : blocks_(kNumCodePoints / 64, 0), values_(64, Value{}) {}

    Value operator[](uint32_t code_point) const { return in_block(blocks_[code_point >> 6], code_point); }
    // The block of the code points from 64 * `prefix` on; 0 where all of them have the default.
    uint16_t block(uint32_t prefix) const { return blocks_[prefix]; }
    Value in_block(uint16_t block, uint32_t code_point) const {
        return values_[block * size_t{64} + (code_point & 63)];
    }

    Value& at(uint32_t code_point) {
        uint16_t& block = blocks_[code_point >> 6];
        if (block == 0) {
            block = static_cast<uint16_t>(values_.size() / 64);
            values_.resize(values_.size() + 64, Value{});
        }
        return values_[block * size_t{64} + (code_point & 63)];
    }

  private:
    std::vector<uint16_t> blocks_;
    std::vector<Value> values_;
};

}  // namespace megagpt
