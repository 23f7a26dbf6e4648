// Escapes in a JSON string. In: bytes of any origin.
#pragma once

namespace megagpt {

inline bool is_digit(char byte) { return byte >= '0' && byte <= '9'; }

inline int hex_digit(char byte) {
    if (is_digit(byte)) return byte - '0';
    const char lower = static_cast<char>(byte | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// What a one-letter escape stands for, or NUL.
inline char plain_escape(char letter) {
    switch (letter) {
        case 'n':
            return '\n';
        case '"':
        case '\\':
        case '/':
            return letter;
        case 't':
            return '\t';
        case 'r':
            return '\r';
        case 'b':
            return '\b';
        case 'f':
            return '\f';
        default:
            return '\0';
    }
}

// The unit of an escape \uXXXX at `at` (its backslash), or -1.
inline int escaped_unit(const char* at, const char* end) {
    if (end - at < 6 || at[0] != '\\' || at[1] != 'u') return -1;
    int unit = 0;
    for (int place = 2; place < 6; ++place) {
        const int digit = hex_digit(at[place]);
        if (digit < 0) return -1;
        unit = unit << 4 | digit;
    }
    return unit;
}

}  // namespace megagpt
