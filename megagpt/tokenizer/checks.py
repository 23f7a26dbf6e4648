"""What every tokenizer checks of what it is given: text that is Unicode, ids that exist. Knows no tokenizer library."""

from collections.abc import Sequence

from megagpt.errors import DataError


def check_unicode(text: str) -> None:
    """Raise DataError where `text` cannot be written as UTF-8, naming the place."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is no "
            "character; repair the text"
        ) from error


def check_ids(ids: Sequence[int], vocab_size: int, path: str) -> list[int]:
    """`ids` as a list of plain integers. Raises DataError for an id that the tokenizer in `path` does not have."""
    plain = [int(token_id) for token_id in ids]
    for token_id in plain:
        if not 0 <= token_id < vocab_size:
            raise DataError(
                f"token id {token_id} does not exist in {path}, which has ids 0 to {vocab_size - 1}; "
                "the ids come from another tokenizer"
            )
    return plain
