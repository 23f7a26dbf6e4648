"""A shuffled order of any number of things that needs no table: the n-th is a pure function of (seed, name, n).

In: a key and a number of things. Out: their order, at any place of it. The definition, for `count` things and b bits,
the fewest from 8 on with 2^b >= count:

    mix(x)    six rounds of   x = (x + add) * multiply mod 2^b;   x = x xor (x >> ceil(b / 2))
    order(n)  mix(n), and mix again while the result is not below count

Each round can be undone, so `mix` is a permutation of 0 … 2^b - 1 and walking its cycles (Black and Rogaway 2002) gives
one of 0 … count - 1. `add` and the odd `multiply` of each round are words of a key from SHAKE-256, so every seed and
name has an order of its own. Only integers: the same on every platform and version, in C++ (megagpt/native/samples.cpp)
and here. Unlike a table it needs no memory, however many things there are (up to 2^62).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 2  # of the definition; checkpoints and index files of another are refused. 1 sorted Philox's output.
KEY_BYTES = 96
_ROUNDS = 6
_LEAST_BITS = 8


def order_key(seed: int, name: str) -> bytes:
    """The key of the order `name` of a run."""
    return hashlib.shake_256(f"{seed}/{name}".encode()).digest(KEY_BYTES)


def order_at(key: bytes | None, count: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which things stand at the places `numbers` (0 … count-1) of the order; `key` None: at place n stands thing n."""
    assert count <= 1 << 62, count
    places = np.asarray(numbers, dtype=np.int64)
    assert places.size == 0 or (places.min() >= 0 and places.max() < count), (count, places)
    if key is None:
        return places.copy()
    words = np.frombuffer(key, dtype="<u8").reshape(_ROUNDS, 2)
    bits = max((count - 1).bit_length(), _LEAST_BITS)

    # few things make long walks: their steps are looked up
    table = _mix(np.arange(1 << bits, dtype=np.uint64), words, bits) if bits == _LEAST_BITS else None
    found = places.astype(np.uint64)
    walking = np.arange(found.size)
    while len(walking):
        found[walking] = _mix(found[walking], words, bits) if table is None else table[found[walking]]
        walking = walking[found[walking] >= np.uint64(count)]
    return found.astype(np.int64)


def _mix(numbers: NDArray[np.uint64], words: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """The six rounds on words of `bits` bits; NumPy's uint64 arrays wrap around without a warning."""
    mask, shift = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    mixed = numbers.copy()
    for add, multiply in words:
        mixed += add
        mixed *= multiply | np.uint64(1)
        mixed &= mask
        mixed ^= mixed >> shift
    return mixed
