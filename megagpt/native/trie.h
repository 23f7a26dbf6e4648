// A set of keys, each a sequence of symbols, as a double array: the step from one symbol to the next is one memory
// access. Knows nothing of text; what a symbol is (a byte, a character's number) is up to the user.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace megagpt {

class Trie {
  public:
    struct Entry {
        std::u32string key;  // symbols from 1 on
        int32_t value = 0;   // not negative
        float weight = 0;
    };
    struct Node {
        uint32_t base = 0;  // the child by symbol s is the node base + s, if its parent is this one; 0: no children
        uint32_t parent = kNoNode;
        int32_t value = kNoValue;  // of the key that ends here
        float weight = 0;
    };
    static constexpr uint32_t kRoot = 0;
    static constexpr uint32_t kNoNode = ~uint32_t{0};
    static constexpr int32_t kNoValue = -1;

    // `num_symbols`: child() takes symbols below it. Keys are not empty; of equal ones the first counts.
    Trie(std::vector<Entry> entries, uint32_t num_symbols);

    const Node* nodes() const { return nodes_.data(); }
    // kRoot, which is nobody's child, where there is none.
    uint32_t child(uint32_t node, uint32_t symbol) const {
        const uint32_t place = nodes_[node].base + symbol;
        return nodes_[place].parent == node ? place : kRoot;
    }

  private:
    std::vector<Node> nodes_;
};

}  // namespace megagpt
