// What a JSON string says: its escapes resolved, whether it is UTF-8, its characters.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "json_escape.h"
#include "json_line.h"
#include "utf8.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace megagpt {
namespace {

char* put_character(uint32_t character, char* out) {
    auto put = [&](uint32_t byte) { *out++ = static_cast<char>(byte); };
    if (character < 0x80) {
        put(character);
        return out;
    }
    if (character < 0x800) {
        put(0xC0 | character >> 6);
    } else {
        if (character < 0x10000) {
            put(0xE0 | character >> 12);
        } else {
            put(0xF0 | character >> 18);
            put(0x80 | (character >> 12 & 0x3F));
        }
        put(0x80 | (character >> 6 & 0x3F));
    }
    put(0x80 | (character & 0x3F));
    return out;
}

// Copies what stands before the next backslash and returns where that is; `out`, moved on, has room for `end` - `at`.
const char* copy_plain(const char* at, const char* end, char*& out) {
#ifdef __SSE2__
    const __m128i backslash = _mm_set1_epi8('\\');
    for (; end - at >= 16; at += 16, out += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
        const int mask = _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, backslash));
        if (mask == 0) continue;
        const int before = __builtin_ctz(static_cast<unsigned>(mask));
        out += before;
        return at + before;
    }
#endif
    while (at < end && *at != '\\') *out++ = *at++;
    return at;
}

}  // namespace

size_t unescape(std::string_view raw, bool last, char*& out) {
    constexpr ptrdiff_t kLongest = 12;  // \uD83D\uDE00
    const char* at = raw.data();
    const char* end = at + raw.size();
    while (at < end) {
        const char* const escape = copy_plain(at, end, out);
        at = escape;
        if (escape == end || (!last && end - escape < kLongest)) break;
        if (end - escape < 2) return kWrongEscape;
        if (escape[1] != 'u') {
            *out++ = plain_escape(escape[1]);
            at = escape + 2;
            continue;
        }
        int unit = escaped_unit(escape, end);
        at = escape + 6;
        if (unit < 0 || (unit >= 0xDC00 && unit < 0xE000)) return kWrongEscape;
        if (unit >= 0xD800 && unit < 0xDC00) {
            const int low = escaped_unit(at, end);
            if (low < 0xDC00 || low >= 0xE000) return kWrongEscape;
            unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
            at += 6;
        }
        out = put_character(static_cast<uint32_t>(unit), out);
    }
    return static_cast<size_t>(at - raw.data());
}

bool is_utf8(std::string_view text) {
    size_t at = 0;
    while (at < text.size()) {
        if (text.size() - at >= 8) {
            uint64_t eight;
            std::memcpy(&eight, text.data() + at, 8);
            if ((eight & 0x8080808080808080u) == 0) {
                at += 8;
                continue;
            }
        }
        const size_t length = valid_length(text.substr(at));
        if (length == 0) return false;
        at += length;
    }
    return true;
}

size_t count_characters(std::string_view text) {
    const char* at = text.data();
    const char* const end = at + text.size();
    size_t count = 0;
#ifdef __SSE2__
    const __m128i last_continuation = _mm_set1_epi8(static_cast<char>(0xBF));
    while (end - at >= 16) {
        const char* const stop = at + std::min(static_cast<ptrdiff_t>(255 * 16), (end - at) / 16 * 16);
        __m128i counts = _mm_setzero_si128();  // a byte for each of 16 places
        for (; at < stop; at += 16) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
            counts = _mm_sub_epi8(counts, _mm_cmpgt_epi8(bytes, last_continuation));
        }
        const __m128i sums = _mm_sad_epu8(counts, _mm_setzero_si128());
        count += static_cast<size_t>(_mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4));
    }
#endif
    for (; at < end; ++at) count += (static_cast<unsigned char>(*at) & 0xC0) != 0x80 ? 1 : 0;
    return count;
}

}  // namespace megagpt
