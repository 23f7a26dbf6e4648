"""Numbers and texts of the report. In: values. Out: short, safe HTML or plain words."""

import unicodedata
from html import escape

_JOINERS = "\u200c\u200d"  # parts of emoji and of some scripts


def short(value: float) -> str:
    """A count with three digits and k, M, G or T; whole below 10,000."""
    if value < 10_000:
        return f"{value:,.0f}"
    for power, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        scaled = value / power
        if scaled >= 0.9995:
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{value:,.0f}"


def round_number(value: float) -> str:
    """`short` for a label of an axis: 250M, 1G, 1.5G."""
    words = short(value)
    digits = words.rstrip("kMGT")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + words[len(digits) :]


def size(num_bytes: float) -> str:
    """Bytes with three digits, in decimal units."""
    return f"{num_bytes:.0f} bytes" if num_bytes < 1000 else _scaled_bytes(num_bytes)


def _scaled_bytes(num_bytes: float) -> str:
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        scaled = num_bytes / power
        if scaled >= 0.9995:
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


def power_of_two(value: int) -> str:
    """A power of two as lengths are spoken of: 512, 1k, 64k, 2M."""
    if value >= 1 << 20:
        return f"{value >> 20}M"
    return f"{value >> 10}k" if value >= 1 << 10 else str(value)


def percent(share: float) -> str:
    """A share with two or three digits; the smallest as "< 0.01 %"."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.{1 if share >= 0.0995 else 2}f} %"


def text(content: str) -> str:
    """Any text for HTML: markup is escaped, and characters that nobody sees or that turn the rest round are named."""
    return escape("".join(c if _shows(c) else f"\\u{ord(c):04x}" for c in content))


def _shows(character: str) -> bool:
    printable = character.isprintable() or character in "\n\t" or character in _JOINERS
    return printable or unicodedata.category(character) == "Zs"
