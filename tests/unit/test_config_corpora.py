"""data.corpora: what is accepted in a file and on the command line, what is refused, and what the plan checks."""

from pathlib import Path

import pytest

from megagpt.config import CorpusSection, DataSection
from megagpt.config_file import dump_toml, load_config
from megagpt.data.corpora import CorpusEntry, corpus_entries
from megagpt.errors import ConfigError
from megagpt.plan import make_plan

FILE = """
[model]
num_layers = 1
vocab_size = 100
[data]
split = [0.8, 0.1, 0.1]
[[data.corpora]]
path = "data/news/corpus"
weight = 3
name = "news"
[[data.corpora]]
path = "data/books.idx"
weight = 0.5
split = [1.0, 0, 0]
"""


def test_a_list_of_tables_comes_back_from_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(FILE)
    config = load_config(str(tmp_path / "x.toml"), []).config
    assert config.data.corpora == (
        CorpusSection(path="data/news/corpus", weight=3.0, name="news"),
        CorpusSection(path="data/books.idx", weight=0.5, split=(1.0, 0.0, 0.0)),
    )
    (tmp_path / "again.toml").write_text(dump_toml(config))
    assert load_config(str(tmp_path / "again.toml"), []).config == config
    assert corpus_entries(config.data) == (
        CorpusEntry("news", "data/news/corpus", 3.0, (0.8, 0.1, 0.1)),
        CorpusEntry("books", "data/books.idx", 0.5, (1.0, 0.0, 0.0)),
    )


def test_one_path_is_a_list_of_one() -> None:
    assert corpus_entries(DataSection(path="data/a/corpus")) == (
        CorpusEntry("corpus", "data/a/corpus", 1.0, (0.98, 0.01, 0.01)),
    )
    assert corpus_entries(DataSection()) == ()


def test_the_command_line_takes_toml() -> None:
    loaded = load_config(None, ['--data.corpora=[{path = "a", weight = 2}, {path = "b"}]'])
    assert loaded.config.data.corpora == (CorpusSection(path="a", weight=2.0), CorpusSection(path="b", weight=1.0))
    assert loaded.describe("data.corpora") == (
        'data.corpora = [{path = "a", weight = 2.0}, {path = "b", weight = 1.0}] (command line)'
    )


def test_a_list_of_a_file_can_be_unset(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(FILE)
    assert load_config(str(tmp_path / "x.toml"), ["--data.corpora=null"]).config.data.corpora is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", r'data.corpora = "x" \(command line\) must be a list of tables with path and weight, such as \[\{path ='),
        ("[]", r"must be a list of tables"),
        ("[3]", r"must be a list of tables"),
        ('{path = "a"}', r"must be a list of tables"),
        ("[{weight = 1}]", r"has no path in its table 1; each needs one, such as"),
        ('[{path = "a"}, {path = "b", wight = 1}]', r"has an unknown key wight in its table 2; the keys are path, wei"),
        ('[{path = "a", weight = 0}]', r"is wrong in its table 1: weight must be greater than 0"),
        ('[{path = "a", weight = inf}]', r"is wrong in its table 1: weight must be a finite number"),
        ('[{path = "a", weight = "1"}]', r"is wrong in its table 1: weight must be a number"),
        ('[{path = ""}]', r"is wrong in its table 1: path must not be empty"),
        ('[{path = "a", split = [1]}]', r"is wrong in its table 1: split must be three numbers from 0 to 1"),
    ],
)
def test_what_is_no_list_of_corpora(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [f"--data.corpora={text}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ['--data.corpora=[{path = "a"}]', "--data.path=b"],
            r'data.path = "b" \(command line\) and data.corpora = .*: a run has either one dataset or a list of them',
        ),
        (
            ['--data.corpora=[{path = "x/c"}, {path = "y/c"}, {path = "d"}]'],
            r"2 corpora are named 'c'; give each a name",
        ),
        (
            ['--data.corpora=[{path = "a", weight = 1e-12}, {path = "b", weight = 1e12}]'],
            r"the weights 1e-12, 1e\+12 of data.corpora have too many digits together",
        ),
        (
            ['--data.corpora=[{path = "a", split = [0.5, 0.4, 0.3]}]'],
            r"the split \[0.5, 0.4, 0.3\] of a in data.corpora = .* sums to 1.2; the three shares must sum to 1",
        ),
        (
            ['--data.corpora=[{path = "a", split = [0.0, 1.0, 0.0]}]'],
            r"the split \[0.0, 1.0, 0.0\] of a in .* leaves nothing to train on",
        ),
    ],
)
def test_what_the_plan_refuses(arguments: list[str], message: str) -> None:
    loaded = load_config(None, ["--model.vocab_size=100", *arguments])
    with pytest.raises(ConfigError, match=message):
        make_plan(loaded, 1, None)
