"""Data for a small run, in a folder with a blank and Chinese in its name."""

from pathlib import Path

import pytest

from tests.parallel.runs import make_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder."""
    folder = tmp_path_factory.mktemp("launch 三国")
    make_data(folder)
    (folder / "run.toml").write_text("")
    return folder
