#include "trie.h"

#include <algorithm>
#include <numeric>

namespace megagpt {
namespace {

// A node before it has its place in the array. Breadth first: a node's children follow one another.
struct Draft {
    size_t first_entry, last_entry;  // [first, last) begin with the symbols that lead here
    size_t first_child = 0, num_children = 0;
    uint32_t symbol = 0;
    int32_t value = Trie::kNoValue;
    float weight = 0;
    uint32_t base = 0;
};

std::vector<Draft> make_drafts(const std::vector<Trie::Entry>& entries) {
    std::vector<size_t> order(entries.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entries[a].key < entries[b].key; });
    std::vector<Draft> drafts{{0, entries.size()}};
    size_t depth = 0;
    for (size_t index = 0, level_end = 1; index < drafts.size(); ++index) {
        if (index == level_end) {
            level_end = drafts.size();
            ++depth;
        }
        Draft draft = drafts[index];
        size_t entry = draft.first_entry;
        for (; entry < draft.last_entry && entries[order[entry]].key.size() == depth; ++entry) {
            if (draft.value != Trie::kNoValue) continue;
            draft.value = entries[order[entry]].value;
            draft.weight = entries[order[entry]].weight;
        }
        draft.first_child = drafts.size();
        for (; entry < draft.last_entry; ++entry) {
            const uint32_t symbol = entries[order[entry]].key[depth];
            if (drafts.size() == draft.first_child || drafts.back().symbol != symbol) {
                drafts.push_back({entry, entry});
                drafts.back().symbol = symbol;
            }
            drafts.back().last_entry = entry + 1;
        }
        draft.num_children = drafts.size() - draft.first_child;
        drafts[index] = draft;
    }
    return drafts;
}

// Finds room for the children of one node after the other; those with many come first.
class Placer {
  public:
    Placer() { set(Trie::kRoot); }

    // The first base from 1 on of which the places base + symbol are free. Symbols ascend.
    uint32_t take(const Draft* children, size_t count) {
        const size_t lowest = children[0].symbol;
        const size_t begin = start_ > lowest ? start_ - lowest : 1;
        size_t base = begin;
        uint64_t fitting;  // bit n: base + n
        for (;; base += 64) {
            fitting = ~uint64_t{0};
            for (size_t index = 0; index < count && fitting != 0; ++index) {
                fitting &= ~taken_from(base + children[index].symbol);
            }
            if (fitting != 0) break;
        }
        while ((fitting & 1) == 0) {
            fitting >>= 1;
            ++base;
        }
        // One child has room almost anywhere: where there was none for long, do not look again.
        if (count == 1 && base - begin >= 256) start_ = base + lowest;
        for (size_t index = 0; index < count; ++index) set(base + children[index].symbol);
        return static_cast<uint32_t>(base);
    }

    size_t size() const { return 64 * taken_.size(); }

  private:
    // Of the 64 places from `place` on, which are taken.
    uint64_t taken_from(size_t place) const {
        const size_t word = place / 64, bit = place % 64;
        const uint64_t low = word < taken_.size() ? taken_[word] >> bit : 0;
        return bit == 0 || word + 1 >= taken_.size() ? low : low | taken_[word + 1] << (64 - bit);
    }

    void set(size_t place) {
        if (place / 64 >= taken_.size()) taken_.resize(place / 64 + 1);
        taken_[place / 64] |= uint64_t{1} << (place % 64);
    }

    std::vector<uint64_t> taken_;  // bits
    size_t start_ = 1;
};

}  // namespace

Trie::Trie(std::vector<Entry> entries, uint32_t num_symbols) {
    std::vector<Draft> drafts = make_drafts(entries);
    std::vector<size_t> order;
    for (size_t index = 0; index < drafts.size(); ++index) {
        if (drafts[index].num_children > 0) order.push_back(index);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return drafts[a].num_children > drafts[b].num_children; });
    Placer placer;
    uint32_t last_base = 0;
    for (const size_t index : order) {
        drafts[index].base = placer.take(&drafts[drafts[index].first_child], drafts[index].num_children);
        last_base = std::max(last_base, drafts[index].base);
    }
    nodes_.resize(std::max(placer.size(), size_t{last_base} + num_symbols));
    std::vector<uint32_t> places(drafts.size(), kRoot);
    for (size_t index = 0; index < drafts.size(); ++index) {
        const Draft& draft = drafts[index];
        Node& node = nodes_[places[index]];
        node.base = draft.base;
        node.value = draft.value;
        node.weight = draft.weight;
        for (size_t child = draft.first_child; child < draft.first_child + draft.num_children; ++child) {
            places[child] = draft.base + drafts[child].symbol;
            nodes_[places[child]].parent = places[index];
        }
    }
}

}  // namespace megagpt
