"""Orders and splits by a plain reading of their definitions, in Python's own whole numbers."""

import struct


def _rounds(key: bytes) -> list[tuple[int, int]]:
    words = struct.unpack("<12Q", key)
    return [(words[2 * number], words[2 * number + 1] | 1) for number in range(6)]


def _bits(count: int) -> int:
    return max(8, (count - 1).bit_length())


def plain_place(key: bytes, count: int, number: int) -> int:
    """What stands at place `number`."""
    bits = _bits(count)
    while True:
        for add, multiply in _rounds(key):
            number = (number + add) * multiply % 2**bits
            number ^= number >> ((bits + 1) // 2)
        if number < count:
            return number


def plain_order(key: bytes, count: int) -> list[int]:
    """The whole order."""
    return [plain_place(key, count, number) for number in range(count)]


def place_of(key: bytes, count: int, thing: int) -> int:
    """At which place `thing` stands: each round undone, the last one first."""
    bits = _bits(count)
    while True:
        for add, multiply in reversed(_rounds(key)):
            thing ^= thing >> ((bits + 1) // 2)
            thing = (thing * pow(multiply, -1, 2**bits) - add) % 2**bits
        if thing < count:
            return thing


def plain_split(count: int, shares: tuple[float, float, float], split: str) -> list[int]:
    """Numbers of the documents in a split: the first whose cumulative share exceeds the document's place in [0, 1)."""
    names = ("train", "valid", "test")
    members = []
    for number in range(count):
        place = (splitmix64(number) >> 11) / 2**53
        ends = [sum(shares[: end + 1]) if any(shares[end + 1 :]) else 1.0 for end in range(3)]
        if names[next(index for index, end in enumerate(ends) if place < end)] == split:
            members.append(number)
    return members


def splitmix64(number: int) -> int:
    """Plain integers, from the published algorithm."""
    mask = 2**64 - 1
    x = (0x6D65676167707431 + (number + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)
