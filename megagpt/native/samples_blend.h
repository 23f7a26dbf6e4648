// Whose turn each sample of a blend is; docs/blends.md has the rule and its proof.
#pragma once

#include <cstdint>
#include <vector>

#include "samples_order.h"

namespace megagpt {

// One corpus of a blend: its next sample may be taken from `release` on and must be before `deadline`.
struct Turn {
    i64 release, deadline, floor, rest, weight, quotient, remainder;

    // `taken` samples are behind it: floor and rest of taken * total / weight, then the window of the next
    void set(i64 taken, i64 total, i64 own_weight) {
        weight = own_weight;
        quotient = total / weight;
        remainder = total % weight;
        const __int128 product = static_cast<__int128>(taken) * total;
        floor = static_cast<i64>(product / weight);
        rest = static_cast<i64>(product % weight);
        advance();
    }
    void advance() {
        release = floor;
        floor += quotient;
        rest += remainder;
        if (rest >= weight) {
            rest -= weight;
            ++floor;
        }
        deadline = floor + (rest > 0);
    }
};

// Gives out the samples first … first + size - 1: `taken` [k] are the samples of each corpus before them, and are
// brought up to their end; ids and numbers may be null. False where `taken` are not the counts of these weights.
inline bool take_turns(const i64* weights, i64 k, i64 total, i64* taken, i64 first, i64 size, std::uint16_t* ids,
                       i64* numbers) {
    std::vector<Turn> turns(static_cast<std::size_t>(k));
    for (i64 i = 0; i < k; ++i) turns[static_cast<std::size_t>(i)].set(taken[i], total, weights[i]);
    for (i64 place = first; place < first + size; ++place) {
        i64 chosen = -1, soonest = INT64_MAX;
        for (i64 i = 0; i < k; ++i) {
            const Turn& turn = turns[static_cast<std::size_t>(i)];
            if (turn.release <= place && turn.deadline < soonest) {
                chosen = i;
                soonest = turn.deadline;
            }
        }
        if (chosen < 0 || soonest <= place) return false;
        if (ids != nullptr) {
            ids[place - first] = static_cast<std::uint16_t>(chosen);
            numbers[place - first] = taken[chosen];
        }
        ++taken[chosen];
        turns[static_cast<std::size_t>(chosen)].advance();
    }
    return true;
}

}  // namespace megagpt
