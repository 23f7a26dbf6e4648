// The text in a line of JSONL. In: a line and a key. Out: where the key's string stands, and its characters.
//
// Accepts only what Python's json module accepts. Whatever is wrong or unusual (a repeated or escaped key, deep
// nesting, a lone surrogate, an empty text) is called odd: the caller gives such a line to Python, which decides and
// words the error.
#pragma once

#include <string_view>

namespace megagpt {

enum class LineKind { kText, kBlank, kOdd };

struct JsonString {
    std::string_view raw;  // between the quotes, escapes and all
    bool escaped = false;  // a backslash is in it
};

// Gives memory of a mapped file back as a long line is read. `to` only moves forward within one pass.
class MappedPages {
  public:
    MappedPages(const char* begin, size_t size) : begin_(begin), end_(begin + size), next_(begin + kWindow) {}

    static constexpr size_t kWindow = size_t{8} << 20;
    // Everything before `at` is not needed for now.
    void passed(const char* at) {
        if (at >= next_) release(at);
    }
    void rewind() { next_ = begin_ + kWindow; }

  private:
    void release(const char* at);
    const char* begin_;
    const char* end_;
    const char* next_;
};

// Finds the string under `key` in the object on `line` (without its newline), whose other values are checked and passed
// over. `text` is set for kText. UTF-8 is checked everywhere but in the text itself. `pages`: where `line` is mapped
// from a file and longer than memory should hold.
LineKind find_text(std::string_view line, std::string_view key, JsonString& text, MappedPages* pages = nullptr);

// Writes the characters of `raw`, resolving escapes, and returns how many of its bytes were read: all, or without
// `last` up to an escape that its end cuts. kWrongEscape at a lone surrogate. `out`, which is moved on, has room for
// `raw`.
constexpr size_t kWrongEscape = ~size_t{0};
size_t unescape(std::string_view raw, bool last, char*& out);

bool is_utf8(std::string_view text);

// Characters in valid UTF-8.
size_t count_characters(std::string_view text);

}  // namespace megagpt
