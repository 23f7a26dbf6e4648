// A permutation of 0 … count-1 that needs no table; megagpt/data/index_order.py defines it.
#pragma once

#include <cstdint>
#include <cstring>

namespace megagpt {

using i64 = std::int64_t;
using u64 = std::uint64_t;

// One function compiled for several processors, the best of which is chosen when the module is loaded.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

constexpr int kRounds = 6;

// The rounds of Order on words of at most 32 bits, several at a time.
FOR_EACH_PROCESSOR static inline void mix_many(std::uint32_t* words, i64 size, const std::uint32_t* add,
                                               const std::uint32_t* multiply, std::uint32_t mask, int shift) {
    for (i64 i = 0; i < size; ++i) {
        std::uint32_t x = words[i];
        for (int round = 0; round < kRounds; ++round) {
            x = ((x + add[round]) * multiply[round]) & mask;
            x ^= x >> shift;
        }
        words[i] = x;
    }
}

// A permutation of 0 … count-1 that needs no table: rounds of add, multiply, xor-shift on words of `bits` bits, applied
// again while the result is not below count.
struct Order {
    static constexpr int kMinBits = 8;
    static constexpr i64 kMany = 256;
    u64 add[kRounds]{}, multiply[kRounds]{};
    std::uint32_t add32[kRounds]{}, multiply32[kRounds]{};  // arithmetic modulo 2^bits needs no more, up to 32 bits
    u64 count = 0, mask = 0;
    int shift = 0;
    bool identity = true;

    // without a key: at place n stands n; false where the key has another size
    bool set(const void* key, i64 key_bytes, i64 numbers) {
        count = static_cast<u64>(numbers);
        if (key == nullptr) return true;
        u64 words[2 * kRounds];
        if (key_bytes != static_cast<i64>(sizeof words)) return false;
        std::memcpy(words, key, sizeof words);
        for (int round = 0; round < kRounds; ++round) {
            add[round] = words[2 * round];
            multiply[round] = words[2 * round + 1] | 1;
            add32[round] = static_cast<std::uint32_t>(add[round]);
            multiply32[round] = static_cast<std::uint32_t>(multiply[round]);
        }
        int bits = kMinBits;
        while (bits < 63 && (u64{1} << bits) < count) ++bits;
        mask = (u64{1} << bits) - 1;
        shift = (bits + 1) / 2;
        identity = false;
        return true;
    }

    u64 at(u64 x) const {
        if (identity) return x;
        do {
            for (int round = 0; round < kRounds; ++round) {
                x = ((x + add[round]) * multiply[round]) & mask;
                x ^= x >> shift;
            }
        } while (x >= count);
        return x;
    }

    // places first … first + size - 1, at most kMany
    void at_many(i64 first, i64 size, i64* out) const {
        if (identity || mask > UINT32_MAX) {
            for (i64 i = 0; i < size; ++i) out[i] = static_cast<i64>(at(static_cast<u64>(first + i)));
            return;
        }
        std::uint32_t words[kMany];
        i64 todo[kMany];
        for (i64 i = 0; i < size; ++i) {
            words[i] = static_cast<std::uint32_t>(first + i);
            todo[i] = i;
        }
        for (i64 left = size; left > 0;) {
            mix_many(words, left, add32, multiply32, static_cast<std::uint32_t>(mask), shift);
            i64 again = 0;
            for (i64 i = 0; i < left; ++i) {  // without branches: which words are beyond cannot be foreseen
                const std::uint32_t word = words[i];
                const i64 place = todo[i];
                out[place] = word;
                words[again] = word;
                todo[again] = place;
                again += word >= count;
            }
            left = again;
        }
    }
};

}  // namespace megagpt
