"""What tests of small runs begin with."""

from pathlib import Path

import pytest

from tests.parallel.runs import make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus, tokenizer and dataset, of one file of tests."""
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder
