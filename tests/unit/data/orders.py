"""The order of index_order.py by a plain reading of its definition, in Python's own whole numbers; and back."""

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
