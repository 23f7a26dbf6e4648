#include "charsmap.h"

#include <algorithm>
#include <stdexcept>

#include "code_points.h"

namespace megagpt {
namespace {

constexpr uint32_t kIsReplacement = 0x80000000, kEndsRule = 0x100, kByte = 0xFF;
constexpr size_t kMaxRules = 32;    // that match at one place: sentencepiece sees the shortest ones
constexpr size_t kMaxDepth = 4096;  // bytes of a rule
constexpr int kUnseen = -1, kOpen = -2;

// The map comes from a file that anybody can write: nothing in it is believed.
[[noreturn]] void fail() { throw std::runtime_error("the model's precompiled_charsmap is damaged"); }

uint32_t read_u32(std::string_view bytes) {
    uint32_t number = 0;
    for (size_t index = 4; index > 0; --index) number = number << 8 | static_cast<unsigned char>(bytes[index - 1]);
    return number;
}

// Whether `text` is some character's first bytes, but not all of them.
bool begins_character(std::string text) {
    const size_t length = announced_length(text[0]);
    if (text.size() >= length) return false;
    if (text.size() > 1) {
        text.resize(length, '\x80');
        return valid_length(text) == length;
    }
    const auto lead = static_cast<unsigned char>(text[0]);
    return lead >= 0xC2 && lead <= 0xF4;
}

}  // namespace

Charsmap::Charsmap(std::string_view bytes) {
    if (bytes.empty()) return;
    // u32 size of the array in bytes, whole blocks of 256 units; the array; the replacements.
    if (bytes.size() <= 4) fail();
    const size_t array_size = read_u32(bytes);
    if (array_size < 1024 || array_size % 1024 != 0 || array_size >= bytes.size() - 4 || bytes.back() != '\0') fail();
    for (size_t at = 0; at < array_size; at += 4) units_.push_back(read_u32(bytes.substr(4 + at, 4)));
    replacements_ = bytes.substr(4 + array_size);
    if (!whole_characters(replacements_)) fail();
    check_units();
    std::vector<int> longest(units_.size(), kUnseen);
    longest_rule_ = check_rules(0, 0, longest);
}

uint32_t Charsmap::children(uint32_t node) const {
    const uint32_t unit = units_[node];
    return node ^ ((unit >> 10) << ((unit & 0x200) >> 6));
}

bool Charsmap::is_child(uint32_t node, uint32_t byte) const {
    return (units_[node] & (kIsReplacement | kByte)) == byte;
}

bool Charsmap::ends_rule(uint32_t node) const { return (units_[node] & kEndsRule) != 0; }

std::string_view Charsmap::replacement(uint32_t node) const {
    return replacements_.data() + (units_[children(node)] & ~kIsReplacement);
}

// Whatever the text, a lookup stays inside the array and the replacements.
void Charsmap::check_units() const {
    if ((units_[0] & (kIsReplacement | kByte | kEndsRule)) != 0) fail();
    for (uint32_t node = 0; node < units_.size(); ++node) {
        const uint32_t unit = units_[node];
        if ((unit & kIsReplacement) != 0) {
            if ((unit & ~kIsReplacement) >= replacements_.size()) fail();
            continue;
        }
        if ((children(node) | kByte) >= units_.size()) fail();
        if ((unit & kEndsRule) != 0 && (units_[children(node)] & kIsReplacement) == 0) fail();
    }
}

// Checks the rules that can be reached from `node` and returns the length of the longest text from it to a rule's end.
// Rules share units, nmt_nfkc's 225 thousand rules 45 thousand of them: each is seen once.
size_t Charsmap::check_rules(uint32_t node, size_t depth, std::vector<int>& longest) const {
    if (longest[node] == kOpen || depth > kMaxDepth) fail();  // a loop
    if (longest[node] != kUnseen) return static_cast<size_t>(longest[node]);
    longest[node] = kOpen;
    if (ends_rule(node) && !whole_characters(replacement(node))) fail();  // it begins inside a character
    int found = 0;
    const uint32_t first_child = children(node);
    for (uint32_t byte = 0; byte < 256; ++byte) {
        const uint32_t child = first_child ^ byte;
        if (!is_child(child, byte)) continue;
        found = std::max(found, static_cast<int>(check_rules(child, depth + 1, longest)) + 1);
    }
    longest[node] = found;
    return static_cast<size_t>(found);
}

Charsmap::Match Charsmap::longest(std::string_view text) const {
    if (units_.empty()) return {};
    uint32_t node = 0, found = 0;
    size_t found_length = 0, num_rules = 0;
    for (size_t length = 0; length < text.size() && num_rules < kMaxRules; ++length) {
        const uint32_t byte = static_cast<unsigned char>(text[length]);
        node = children(node) ^ byte;
        if (!is_child(node, byte)) break;
        if (!ends_rule(node)) continue;
        found = node;
        found_length = length + 1;
        ++num_rules;
    }
    if (found_length == 0) return {};
    return {found_length, replacement(found)};
}

void Charsmap::visit_first_characters(const Visit& visit) const {
    std::string text;
    if (!units_.empty()) visit_below(0, text, visit);
}

void Charsmap::visit_below(uint32_t node, std::string& text, const Visit& visit) const {
    const bool is_character = !text.empty() && valid_length(text) == text.size();
    if (!text.empty() && !is_character) {
        if (!begins_character(text)) return;
        if (ends_rule(node)) fail();  // the rule cuts a character in two
    }
    std::string next;
    const uint32_t first_child = children(node);
    for (uint32_t byte = 0; byte < 256; ++byte) {
        const uint32_t child = first_child ^ byte;
        if (!is_child(child, byte)) continue;
        next.push_back(static_cast<char>(byte));
        if (is_character) continue;
        text.push_back(static_cast<char>(byte));
        visit_below(child, text, visit);
        text.pop_back();
    }
    if (is_character) visit(text, ends_rule(node) && replacement(node) != text, next);
}

}  // namespace megagpt
