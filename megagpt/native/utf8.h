// UTF-8 as sentencepiece reads it (util.cc): one invalid byte is one character U+FFFD.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace megagpt {

// Length in bytes that a lead byte announces; a continuation byte counts as a character of its own (OneCharLen).
inline size_t announced_length(char lead) {
    return "\1\1\1\1\1\1\1\1\1\1\1\1\2\2\3\4"[static_cast<unsigned char>(lead) >> 4];
}

// Length of the valid character at the start of `text`, 0 where its first byte begins none. `text` is not empty.
inline size_t valid_length(std::string_view text) {
    auto byte = [&](size_t index) { return static_cast<unsigned char>(text[index]); };
    auto trail = [&](size_t index) { return index < text.size() && (byte(index) & 0xC0) == 0x80; };
    const unsigned char lead = byte(0);
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return trail(1) ? 2 : 0;
    if (lead >= 0xE0 && lead <= 0xEF) {
        if (!trail(1) || !trail(2)) return 0;
        if (lead == 0xE0 && byte(1) < 0xA0) return 0;   // overlong
        if (lead == 0xED && byte(1) >= 0xA0) return 0;  // surrogate
        return 3;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        if (!trail(1) || !trail(2) || !trail(3)) return 0;
        if (lead == 0xF0 && byte(1) < 0x90) return 0;
        if (lead == 0xF4 && byte(1) >= 0x90) return 0;
        return 4;
    }
    return 0;
}

// The code point of a valid character of `length` bytes.
inline uint32_t code_point(const char* text, size_t length) {
    auto byte = [&](size_t index) { return static_cast<uint32_t>(static_cast<unsigned char>(text[index])); };
    switch (length) {
        case 1:
            return byte(0);
        case 2:
            return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
        case 3:
            return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
        default:
            return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    }
}

}  // namespace megagpt
