"""Types of the extension module; megagpt/data/index_numpy.py says what the functions mean."""

from typing_extensions import Buffer

# lengths, pointers, bounds, item_bytes, end_bytes, low, high
_Documents = tuple[Buffer, Buffer, Buffer | None, int, int, int, int]

def order(key: Buffer | None, count: int, numbers: Buffer, out: Buffer, /) -> None: ...
def split_totals(documents: _Documents, /) -> tuple[int, int]: ...
def group_starts(documents: _Documents, key: Buffer | None, group: int, out: Buffer, /) -> None: ...
def gather(
    tokens: Buffer,
    type_name: str,
    documents: _Documents,
    key: Buffer | None,
    starts: Buffer,
    group: int,
    window_key: Buffer | None,
    num_windows: int,
    numbers: Buffer,
    rows: Buffer,
    length: int,
    out: Buffer,
    /,
) -> None: ...
def blend(
    weights: Buffer, counts: Buffer, first: int, size: int, ids: Buffer | None, numbers: Buffer | None, /
) -> None: ...
