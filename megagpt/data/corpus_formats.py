"""Why a document cannot be read, in words. In: a line of JSON, a text, or an error. Out: the text, or a BadDocument.

All that read a corpus take their messages from here. Nothing here knows paths or what to do on errors.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple


class BadDocument(NamedTuple):
    """A document that cannot be read: a short reason to count under, and a message with the fix."""

    reason: str
    message: str


class DamagedFile(Exception):
    """The rest of a file cannot be read."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def json_text(raw: bytes, text_key: str) -> str | BadDocument:
    """The text of one line of JSONL, its line end or not, or why there is none. A lone surrogate is not looked for."""
    try:
        row = json.loads(raw.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return invalid_utf8(error, "line")
    except (ValueError, RecursionError) as error:  # JSONDecodeError, or an integer of more digits than Python reads
        return BadDocument("not JSON", f"the line is not JSON ({error}); repair it, or use --on-error skip")
    if not isinstance(row, dict):
        return BadDocument(
            "not a JSON object",
            f'the line is a JSON {type(row).__name__}, not an object such as {{"{text_key}": "…"}}; '
            "repair it, or use --on-error skip",
        )
    if text_key not in row:
        return missing_key(text_key, list(row), "key")
    text = row[text_key]
    return text if isinstance(text, str) else not_text(text_key, text)


def utf8_bytes(text: str) -> int | BadDocument:
    """The length of `text` in UTF-8, or what is wrong with it: a lone surrogate, which a JSON escape can hold."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(text[error.start]):04X}"
        return BadDocument(
            "lone surrogate",
            f"the text has a lone surrogate {surrogate} at character {error.start}, which is no character; "
            "repair the line, or use --on-error skip",
        )


def missing_key(text_key: str, present: Sequence[str], noun: str) -> BadDocument:
    """Says that there is no such key or column (`noun`), and which there are."""
    names = ", ".join(map(repr, present)) or "none"
    return BadDocument(
        f"no {noun} {text_key!r}",
        f"there is no {noun} {text_key!r}; the {noun}s are: {names}; name the text's {noun} with --text-key",
    )


def not_text(text_key: str, value: Any) -> BadDocument:
    """Says that `value`, which stands where the text must be, is none."""
    kind = "null" if value is None else type(value).__name__
    return BadDocument(
        f"{text_key!r} is not text",
        f"{text_key!r} is {kind}, not text; name another with --text-key, or use --on-error skip",
    )


def invalid_utf8(error: UnicodeDecodeError, noun: str, before: int = 0) -> BadDocument:
    """Says where a `noun` (line, text, file) is not UTF-8; `before`: its bytes before those that `error` counts."""
    wrong = f"0x{error.object[error.start]:02x}: {error.reason}"
    return BadDocument(
        "invalid UTF-8",
        f"invalid UTF-8 at byte {before + error.start} of the {noun} ({wrong}); "
        "convert the file to UTF-8, or use --on-error skip",
    )


def unreadable_long_line(size_bytes: int, text_key: str) -> BadDocument:
    """Says that a line too long to be held whole in memory has no text that can be found part by part."""
    return BadDocument(
        "unreadable long line",
        f"the line of {size_bytes} bytes is no JSON object with a text under {text_key!r} (in a "
        "line this long the key must stand once and plainly, and no lone surrogate in the text); repair it, or use "
        "--on-error skip",
    )


def damaged(form: str, last_good_line: int, detail: str) -> DamagedFile:
    """The error for a file of a compressed form (such as gzip) that is whole up to a line; `detail` is the reason."""
    detail = detail.strip().splitlines()[0] if detail.strip() else "it ends too early"
    return DamagedFile(
        f"damaged {form} file",
        f"the {form} data is truncated or damaged after line {last_good_line} ({detail}); copy the file again, "
        "or use --on-error skip",
    )
