"""`megagpt data show`: the text of a run's batch, and what it refuses."""

from pathlib import Path

import pytest

from megagpt.data.show_run import show_step
from megagpt.errors import ConfigError
from tests.parallel.runs import make_data

CONFIG = """
[model]
num_layers = 1
num_heads = 1
hidden_size = 8
sequence_length = 32
[tokenizer]
path = "{folder}/tokenizer.model"
[data]
path = "{folder}/corpus"
split = [0.9, 0.1, 0.0]
[train]
steps = 3
batch_tokens = 128
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("show")
    make_data(place)
    (place / "config.toml").write_text(CONFIG.format(folder=place), encoding="utf-8")
    return place


def test_a_run_folder_and_its_file_show_the_same_text(folder: Path) -> None:
    shown = show_step(str(folder), 2)
    assert shown == show_step(str(folder / "config.toml"), 2)
    assert shown.count("--- micro-batch") == 4
    assert "回" in shown
    assert shown != show_step(str(folder), 1)


def test_a_step_beyond_the_run_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--step 3 is not a step of .*, which has steps 0 to 2"):
        show_step(str(folder), 3)


def test_a_configuration_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gpt3-base names no tokenizer\.path or no data\.path"):
        show_step("gpt3-base", 0)
