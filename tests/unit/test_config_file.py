"""Reading configurations: precedence, provenance, and every message about a value that cannot be."""

import re
from pathlib import Path

import pytest

from megagpt.config import RunConfig
from megagpt.config_file import config_keys, dump_toml, find_config, load_config, shipped_names
from megagpt.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems_of(name_or_path, *arguments):
    with pytest.raises(ConfigError) as caught:
        load_config(name_or_path, list(arguments))
    return caught.value.problems


def test_defaults_alone():
    loaded = load_config(None, [])
    assert loaded.config == RunConfig()
    assert set(loaded.origins.values()) == {"default"}
    assert list(loaded.origins) == config_keys()
    assert loaded.config.train.lr == 6e-4
    assert loaded.config.train.beta2 == 0.95


def test_precedence_and_provenance(folder):
    write(folder / "base.toml", "[train]\nlr = 1e-3\nbeta1 = 0.8\nbeta2 = 0.8\n[model]\nnum_layers = 3\n")
    write(folder / "runs/x.toml", 'base = "../base.toml"\n[train]\nbeta1 = 0.7\nbeta2 = 0.7\n')
    loaded = load_config("runs/x.toml", ["--train.beta2", "0.6"])
    train = loaded.config.train
    assert (train.lr, train.beta1, train.beta2, train.epsilon) == (1e-3, 0.7, 0.6, 1e-8)
    assert loaded.origins["train.lr"] == "base.toml"
    assert loaded.origins["train.beta1"] == "runs/x.toml"
    assert loaded.origins["train.beta2"] == "command line"
    assert loaded.origins["train.epsilon"] == "default"
    assert loaded.describe("train.beta1") == "train.beta1 = 0.7 (runs/x.toml)"
    assert loaded.describe("model.vocab_size") == "model.vocab_size = unset (default)"


def test_values_of_every_type_in_a_file(folder):
    write(
        folder / "x.toml",
        '[data]\nsplit = [0.9, 0.1, 0]\nseparate_documents = true\n[train]\ntokens = "1.1k"\nclip_grad = 0\n'
        'warmup_tokens = "0.3B"\nprecision = "fp16"\n[parallel]\nzero_stage = 3\n',
    )
    config = load_config("x.toml", []).config
    assert config.data.split == (0.9, 0.1, 0.0)
    assert config.data.separate_documents is True
    assert config.train.tokens == 1100
    assert config.train.warmup_tokens == 300_000_000
    assert config.train.clip_grad == 0.0
    assert config.parallel.zero_stage == 3


def test_a_name_is_found_in_configs_of_the_current_folder_and_of_the_package(folder):
    assert "gpt3-175b" in shipped_names()
    assert find_config("gpt3-175b").name == "gpt3-175b.toml"
    write(folder / "configs/runs/mine.toml", "[run]\nseed = 5\n")
    loaded = load_config("mine", [])
    assert loaded.config.run.seed == 5
    assert loaded.origins["run.seed"] == "configs/runs/mine.toml"
    write(folder / "configs/models/gpt3-175b.toml", "[run]\nseed = 6\n")
    assert load_config("gpt3-175b", []).config.run.seed == 6  # the current folder comes first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt3-175", "no configuration is named 'gpt3-175'; did you mean gpt3-175b"),
        ("zzzzzz", r"no configuration is named 'zzzzzz'; there are .*gpt3-base.* or give the path of a TOML file"),
        ("runs/quickstrat.toml", r"runs/quickstrat\.toml: no such configuration file; did you mean quickstart"),
        ("runs/zzzzzz.toml", r"runs/zzzzzz\.toml: no such configuration file$"),
    ],
)
def test_unknown_configuration(folder, name, message):
    with pytest.raises(ConfigError, match=message):
        load_config(name, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trian]\nlr = 1.0\n", "unknown section trian (x.toml); did you mean train?"),
        (
            "[train]\nlearning_rat = 1.0\n",
            "unknown key train.learning_rat (x.toml); the keys of [train] are tokens, ",
        ),
        ("[train]\nwarmup_token = 1\n", "unknown key train.warmup_token (x.toml); did you mean train.warmup_tokens"),
        ("[train]\nnum_layers = 1\n", "unknown key train.num_layers (x.toml); did you mean model.num_layers?"),
        ("lr = 1.0\n", "unknown key lr (x.toml); did you mean train.lr?"),
        ("train = 3\n", "train = 3 (x.toml) must be a section, written [train]"),
        ('[train]\nlr = "abc"\n', 'train.lr = "abc" (x.toml) must be a number, such as 0.1 or 6e-4'),
        ('[train]\nlr = "1e-3"\n', 'train.lr = "1e-3" (x.toml) must be a number, such as 0.1 or 6e-4'),
        ("[train]\nlr = true\n", "train.lr = true (x.toml) must be a number, such as 0.1 or 6e-4"),
        ("[train]\nlr = inf\n", "train.lr = inf (x.toml) must be a finite number"),
        ("[train]\nlr = nan\n", "train.lr = nan (x.toml) must be a finite number"),
        ("[train]\nlr = 0\n", "train.lr = 0 (x.toml) must be greater than 0"),
        ("[train]\nlr = {a = [1]}\n", "train.lr = {a = [1]} (x.toml) must be a number, such as 0.1 or 6e-4"),
        ("[train]\nbeta1 = 1.0\n", "train.beta1 = 1.0 (x.toml) must be less than 1"),
        ("[train]\nmin_lr_ratio = 1.5\n", "train.min_lr_ratio = 1.5 (x.toml) must be at most 1"),
        ("[train]\nsteps = 1.5\n", "train.steps = 1.5 (x.toml) must be a whole number, such as 12"),
        ("[train]\nsteps = 0\n", "train.steps = 0 (x.toml) must be at least 1"),
        ("[train]\ntokens = 300e9\n", "train.tokens = 300000000000.0 (x.toml) must be a whole number, such as 12"),
        ("[train]\ntokens = true\n", "train.tokens = true (x.toml) is not a number of tokens; write a whole number"),
        (
            '[train]\ntokens = "3 GB"\n',
            'train.tokens = "3 GB" (x.toml) is not a number of tokens; write a whole number',
        ),
        ('[train]\ntokens = "1.5"\n', 'train.tokens = "1.5" (x.toml) is not a whole number of tokens'),
        (
            '[train]\nprecision = "bf17"\n',
            'train.precision = "bf17" (x.toml) must be "fp32", "bf16" or "fp16"',
        ),
        ("[parallel]\nzero_stage = 4\n", "parallel.zero_stage = 4 (x.toml) must be 0, 1, 2 or 3"),
        ("[parallel]\nsequence_parallel = 1\n", "parallel.sequence_parallel = 1 (x.toml) must be true or false"),
        ("[run]\nname = 3\n", 'run.name = 3 (x.toml) must be text in quotes, such as "abc"'),
        ('[run]\nname = ""\n', 'run.name = "" (x.toml) must not be empty'),
        ("[data]\nsplit = [0.5, 0.5]\n", "data.split = [0.5, 0.5] (x.toml) must be three numbers from 0 to 1"),
        ('[data]\nsplit = ["a", 1, 0]\n', 'data.split = ["a", 1, 0] (x.toml) must be three numbers from 0 to 1'),
        ("[data]\nsplit = [1.5, -0.5, 0]\n", "data.split = [1.5, -0.5, 0] (x.toml) must be three numbers from 0 to 1"),
        ("[train]\nlr = = 2\n", "x.toml:2: is not valid TOML: Invalid value (column 6)"),
        ("[train]\nlr = 1\nlr = 2\n", "x.toml:3: is not valid TOML: Cannot overwrite a value"),
        ("[train", "x.toml: is not valid TOML: "),
        ("base = 3\n", "base = 3 (x.toml) must be the path of a TOML file, relative to this one"),
        ('base = "none.toml"\n', 'base = "none.toml" (x.toml): there is no file none.toml'),
    ],
)
def test_problems_of_a_file(folder, text, message):
    write(folder / "x.toml", text)
    problems = problems_of("x.toml")
    assert len(problems) == 1, problems
    assert problems[0].startswith(message)


def test_a_file_that_is_not_utf8(folder):
    (folder / "x.toml").write_bytes(b"# one\nname = '\xff'\n")
    assert problems_of("x.toml") == ["x.toml:2: is not UTF-8 text"]


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    write(folder / "x.toml", "")
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert problems_of("x.toml") == ["x.toml: cannot be read: Permission denied"]


def test_base_of_a_base_is_refused(folder):
    write(folder / "a.toml", "[run]\nseed = 1\n")
    write(folder / "b.toml", 'base = "a.toml"\n')
    write(folder / "c.toml", 'base = "b.toml"\n')
    (problem,) = problems_of("c.toml")
    assert problem.startswith(
        'base = "a.toml" (b.toml): a base file cannot name another base; c.toml already builds on'
    )


def test_every_problem_at_once(folder):
    write(folder / "base.toml", "[model]\nnum_layer = 2\n")
    write(folder / "x.toml", 'base = "base.toml"\n[train]\nlr = "abc"\n[trane]\n')
    problems = problems_of("x.toml", "--train.stps", "3", "--train.beta1", "2", "--log.tensorboard")
    assert len(problems) == 6
    text = "\n".join(problems)
    for part in ("model.num_layer (base.toml)", "section trane (x.toml)", "--train.stps (command line)"):
        assert part in text
    assert "--log.tensorboard (command line) needs a value, as in --log.tensorboard VALUE" in problems
    assert 'train.lr = "abc" (x.toml) must be a number, such as 0.1 or 6e-4' in problems
    assert "train.beta1 = 2.0 (command line) must be less than 1" in problems


def test_the_last_source_is_the_one_named(folder):
    write(folder / "x.toml", 'train.lr = "bad"\n')
    assert load_config("x.toml", ["--train.lr", "1e-3"]).config.train.lr == 1e-3


def test_dump_reads_back_equal(folder):
    arguments = [
        "--run.name",
        'a"b\\c\n中文\x7f\x01',
        "--train.lr",
        "0.1234567890123456789",
        "--train.epsilon",
        "1e-300",
    ]
    arguments += ["--data.split", "0.7,0.2,0.1", "--train.steps", "7", "--train.beta1", "0.30000000000000004"]
    config = load_config("gpt3-13b", arguments).config
    write(folder / "out.toml", dump_toml(config))
    again = load_config("out.toml", [])
    assert again.config == config
    assert "vocab_size = 50257" in dump_toml(config)
    unset = load_config(None, []).config
    assert not re.search(r"vocab_size|steps = None|null", dump_toml(unset).replace("interval_steps", ""))
    write(folder / "unset.toml", dump_toml(unset))
    assert load_config("unset.toml", []).config == unset


def test_config_is_frozen():
    config = load_config(None, []).config
    with pytest.raises(Exception, match="frozen"):
        config.train.lr = 1.0
