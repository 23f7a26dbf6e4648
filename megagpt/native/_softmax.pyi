"""Types of the extension module; megagpt/kernels/cross_entropy_native.py says what the numbers mean."""

def is_usable() -> bool: ...
def rows(
    is_bfloat16: bool,
    is_known: bool,
    threads: int,
    num_rows: int,
    row_stride: int,
    width: int,
    num_valid: int,
    first: int,
    logits: int,
    labels: int,
    weights: int,
    sums: int,
    scores: int,
    /,
) -> None: ...
