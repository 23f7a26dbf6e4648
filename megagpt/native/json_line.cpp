#include "json_line.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "json_escape.h"

namespace megagpt {
namespace {

constexpr int kMaxDepth = 64;       // Python's own limit depends on its recursion limit
constexpr size_t kMaxDigits = 640;  // the least limit that Python can be given for integers

bool is_space(char byte) { return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n'; }

// The first quote, backslash or control character from `at` on.
const char* special(const char* at, const char* end) {
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\'), control = _mm_set1_epi8(0x1F);
    for (; end - at >= 16; at += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        const __m128i low = _mm_cmpeq_epi8(_mm_min_epu8(bytes, control), bytes);
        const __m128i found =
            _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, backslash)), low);
        const int mask = _mm_movemask_epi8(found);
        if (mask != 0) return at + __builtin_ctz(static_cast<unsigned>(mask));
    }
#endif
    while (at < end && *at != '"' && *at != '\\' && static_cast<unsigned char>(*at) >= 0x20) ++at;
    return at;
}

// One line, read from left to right; every method returns false where the line is odd.
class Reader {
  public:
    Reader(std::string_view line, MappedPages* pages)
        : at_(line.data()), end_(line.data() + line.size()), pages_(pages) {}

    void spaces() {
        if (pages_ != nullptr) pages_->passed(at_);
        while (at_ < end_ && is_space(*at_)) ++at_;
    }
    bool take(char byte) {
        spaces();
        if (at_ == end_ || *at_ != byte) return false;
        ++at_;
        return true;
    }
    bool peek(char byte) {
        spaces();
        return at_ < end_ && *at_ == byte;
    }
    bool done() {
        spaces();
        return at_ == end_;
    }

    bool string(JsonString& found) {
        if (!take('"')) return false;
        const char* begin = at_;
        found.escaped = false;
        while (true) {
            at_ = next_special();
            if (at_ == end_ || static_cast<unsigned char>(*at_) < 0x20) return false;
            if (*at_ == '"') break;
            found.escaped = true;
            if (end_ - at_ < 2) return false;
            if (at_[1] == 'u') {
                if (escaped_unit(at_, end_) < 0) return false;
                at_ += 6;
            } else {
                if (plain_escape(at_[1]) == '\0') return false;
                at_ += 2;
            }
        }
        found.raw = std::string_view(begin, static_cast<size_t>(at_ - begin));
        ++at_;
        return true;
    }

    // Passes over any value.
    bool value() {
        uint64_t objects = 0;  // a bit a level: whether it is an object
        int depth = 0;
        while (true) {
            spaces();
            if (at_ == end_) return false;
            bool closed = true;
            if (*at_ == '{' || *at_ == '[') {
                if (depth == kMaxDepth) return false;
                const bool object = *at_++ == '{';
                objects = objects << 1 | (object ? 1 : 0);
                ++depth;
                if (peek(object ? '}' : ']')) {
                    ++at_;
                    objects >>= 1;
                    --depth;
                } else {
                    if (object && !key()) return false;
                    closed = false;
                }
            } else if (!scalar()) {
                return false;
            }
            while (closed && depth > 0) {
                const bool object = (objects & 1) != 0;
                if (take(',')) {
                    if (object && !key()) return false;
                    closed = false;
                } else if (take(object ? '}' : ']')) {
                    objects >>= 1;
                    --depth;
                } else {
                    return false;
                }
            }
            if (closed) return true;
        }
    }

  private:
    bool key() {
        JsonString ignored;
        return string(ignored) && valid(ignored.raw) && take(':');
    }

    // The next special byte, found window by window where the line is mapped.
    const char* next_special() {
        if (pages_ == nullptr) return special(at_, end_);
        while (true) {
            pages_->passed(at_);
            const char* stop = at_ + std::min(MappedPages::kWindow, static_cast<size_t>(end_ - at_));
            at_ = special(at_, stop);
            if (at_ < stop || stop == end_) return at_;
        }
    }

    // is_utf8, window by window where the line is mapped.
    bool valid(std::string_view text) {
        if (pages_ == nullptr || text.size() <= MappedPages::kWindow) return is_utf8(text);
        pages_->rewind();
        while (text.size() > MappedPages::kWindow) {
            size_t cut = MappedPages::kWindow;
            while (cut > MappedPages::kWindow - 4 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;
            if (!is_utf8(text.substr(0, cut))) return false;
            text.remove_prefix(cut);
            pages_->passed(text.data());
        }
        return is_utf8(text);
    }

    bool scalar() {
        if (*at_ == '"') {
            JsonString ignored;
            return string(ignored) && valid(ignored.raw);
        }
        for (const char* word : {"true", "false", "null", "NaN", "Infinity", "-Infinity"}) {
            const size_t length = std::strlen(word);
            if (static_cast<size_t>(end_ - at_) >= length && std::memcmp(at_, word, length) == 0) {
                at_ += length;
                return true;
            }
        }
        return number();
    }

    bool number() {
        const char* begin = at_;
        if (at_ < end_ && *at_ == '-') ++at_;
        if (at_ < end_ && *at_ == '0') {
            ++at_;
        } else if (!digits()) {
            return false;
        }
        if (at_ < end_ && *at_ == '.') {
            ++at_;
            if (!digits()) return false;
        }
        if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
            ++at_;
            if (at_ < end_ && (*at_ == '+' || *at_ == '-')) ++at_;
            if (!digits()) return false;
        }
        return static_cast<size_t>(at_ - begin) <= kMaxDigits;
    }

    bool digits() {
        const char* begin = at_;
        while (at_ < end_ && is_digit(*at_)) ++at_;
        return at_ > begin;
    }

    const char* at_;
    const char* end_;
    MappedPages* pages_;
};

}  // namespace

LineKind find_text(std::string_view line, std::string_view key, JsonString& text, MappedPages* pages) {
    Reader reader(line, pages);
    if (reader.done()) return LineKind::kBlank;
    if (!reader.take('{')) return LineKind::kOdd;
    bool found = false;
    while (true) {
        JsonString name;
        if (!reader.string(name) || name.escaped || !is_utf8(name.raw) || !reader.take(':')) return LineKind::kOdd;
        if (name.raw == key) {
            if (found || !reader.string(text)) return LineKind::kOdd;
            found = true;
        } else if (!reader.value()) {
            return LineKind::kOdd;
        }
        if (reader.take('}')) break;
        if (!reader.take(',')) return LineKind::kOdd;
    }
    return found && !text.raw.empty() && reader.done() ? LineKind::kText : LineKind::kOdd;
}

void MappedPages::release(const char* at) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const char* from = std::max(begin_, next_ - kWindow);  // what was passed before that is given back already
    const uintptr_t first = (reinterpret_cast<uintptr_t>(from) + page - 1) & ~(page - 1);
    const uintptr_t stop = reinterpret_cast<uintptr_t>(std::min(at, end_)) & ~(page - 1);
    if (stop > first) madvise(reinterpret_cast<void*>(first), stop - first, MADV_DONTNEED);
    next_ = at + kWindow;
}

}  // namespace megagpt
