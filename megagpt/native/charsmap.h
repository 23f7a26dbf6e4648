// The rules of a SentencePiece model (precompiled_charsmap), which replace a text by another. In: bytes of any origin.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace megagpt {

class Charsmap {
  public:
    // Throws std::runtime_error where the map is damaged; lookups need no checks then. An empty map has no rules.
    explicit Charsmap(std::string_view bytes);

    struct Match {
        size_t length = 0;  // of the rule's text; 0: none
        std::string_view replacement;
    };
    // The longest rule for what `text` begins with.
    Match longest(std::string_view text) const;

    bool empty() const { return units_.empty(); }
    size_t longest_rule() const { return longest_rule_; }  // bytes

    // Calls visit(character, changes, next): a rule's text begins with this (valid) character. `changes`: one that is
    // only this character replaces it. `next`: the bytes that follow it in other rules.
    using Visit = std::function<void(std::string_view character, bool changes, const std::string& next)>;
    void visit_first_characters(const Visit& visit) const;

  private:
    uint32_t children(uint32_t node) const;
    bool is_child(uint32_t node, uint32_t byte) const;
    bool ends_rule(uint32_t node) const;
    std::string_view replacement(uint32_t node) const;
    void check_units() const;
    size_t check_rules(uint32_t node, size_t depth, std::vector<int>& longest) const;
    void visit_below(uint32_t node, std::string& text, const Visit& visit) const;

    // A double array of Darts-clone. Of a node: bits 0–7 the byte that leads to it, bit 8 whether a rule's text ends
    // here, bits 10–30 the distance to its children, in units of 256 where bit 9 is set. The child by byte b is the
    // unit at (node ^ distance ^ b), if b stands there; at (node ^ distance) is the rule's replacement, with bit 31
    // set.
    std::vector<uint32_t> units_;
    std::string replacements_;  // each with a NUL behind it
    size_t longest_rule_ = 0;
};

}  // namespace megagpt
