"""Writes the report on datasets. In: prefixes, perhaps a tokenizer or a run. Out: one HTML file."""

import os
from collections.abc import Sequence
from pathlib import Path

from megagpt.data.report_facts import gather_facts
from megagpt.data.report_page import page
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer


def write_report(prefixes: Sequence[str], output: str | Path, tokenizer: Tokenizer | None) -> Path:
    """Write the page on the datasets `prefixes` to `output`, replacing a report that is there.

    With a tokenizer they are checked against it and documents are decoded. Raises DataError.
    """
    output = Path(output)
    datasets = [gather_facts(prefix, tokenizer) for prefix in prefixes]
    content = page(datasets, tokenizer.path if tokenizer is not None else None)
    partial = output.with_name(f"{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, output)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror}; choose another --output") from error
    return output
