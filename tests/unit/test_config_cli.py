"""The command line's half of the configuration: arguments, help, and what is refused."""

import argparse

import pytest

from megagpt.config_cli import config_arguments_help, split_arguments, unknown_argument
from megagpt.config_file import config_keys, load_config
from megagpt.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--train.lr", "3e-4"], "train.lr", 3e-4),
        (["--train.lr=3e-4"], "train.lr", 3e-4),
        (["--train.lr", "1", "--train.lr", "2"], "train.lr", 2.0),
        (["--train.tokens", "375M"], "train.tokens", 375_000_000),
        (["--train.tokens", "375000000"], "train.tokens", 375_000_000),
        (["--train.steps=10"], "train.steps", 10),
        (["--data.split", "0.9,0.05,0.05"], "data.split", (0.9, 0.05, 0.05)),
        (["--data.split", "[0.9, 0.05, 0.05]"], "data.split", (0.9, 0.05, 0.05)),
        (["--parallel.sequence_parallel", "true"], "parallel.sequence_parallel", True),
        (["--parallel.sequence_parallel=False"], "parallel.sequence_parallel", False),
        (["--parallel.zero_stage", "2"], "parallel.zero_stage", 2),
        (["--train.precision", "fp16"], "train.precision", "fp16"),
        (["--run.name", "10"], "run.name", "10"),
        (["--run.name", "null"], "run.name", "null"),
        (["--run.name", "a=b"], "run.name", "a=b"),
        (["--data.path", "[x"], "data.path", "[x"),
    ],
)
def test_values(arguments, key, value):
    loaded = load_config(None, arguments)
    assert loaded.value(key) == value
    assert type(loaded.value(key)) is type(value)
    assert loaded.origins[key] == "command line"


@pytest.mark.parametrize("word", ["null", "none"])
def test_a_value_of_a_file_can_be_unset(word):
    assert load_config("gpt3-base", []).config.model.vocab_size == 50257
    loaded = load_config("gpt3-base", ["--model.vocab_size", word])
    assert loaded.config.model.vocab_size is None
    assert loaded.origins["model.vocab_size"] == "command line"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.stpes", "3"], r"unknown argument --train\.stpes \(command line\); did you mean --train\.steps"),
        (["--trane.lr=3"], r"unknown argument --trane\.lr \(command line\); did you mean --train\.lr"),
        (["foo"], r"^unknown argument foo \(command line\)$"),
        (["--train.lr"], r"^--train\.lr \(command line\) needs a value, as in --train\.lr VALUE$"),
        (["--train.lr", "--train.steps=1"], r"^--train\.lr \(command line\) needs a value"),
        (["--train.lr", "abc"], r'^train\.lr = "abc" \(command line\) must be a number'),
        (["--train.lr", "-1e-3"], r"^train\.lr = -0\.001 \(command line\) must be greater than 0$"),
        (["--train.lr", "nan"], r"^train\.lr = nan \(command line\) must be a finite number$"),
        (["--train.lr="], r'^train\.lr = "" \(command line\) must be a number'),
        (["--train.steps", "1.5"], r'^train\.steps = "1\.5" \(command line\) must be a whole number'),
        (["--train.batch_tokens", "1e9"], r'^train\.batch_tokens = "1e9" \(command line\) is not a number of tokens'),
        (
            ["--train.batch_tokens", "4x"],
            r'^train\.batch_tokens = "4x" .*; write a whole number or one with a unit k, M',
        ),
        (["--log.tensorboard", "maybe"], r'^log\.tensorboard = "maybe" \(command line\) must be true or false$'),
        (["--log.tensorboard", "null"], r'^log\.tensorboard = "null" \(command line\) must be true or false$'),
        (["--parallel.zero_stage", "7"], r'^parallel\.zero_stage = "7" \(command line\) must be 0, 1, 2 or 3$'),
        (["--data.split", "a,b,c"], r'^data\.split = "a,b,c" \(command line\) must be three numbers from 0 to 1'),
        (["--data.split", "0.9"], r"^data\.split = \[0\.9\] \(command line\) must be three numbers from 0 to 1"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, arguments)


def test_split_arguments():
    own, config = split_arguments(
        ["x", "--gpus", "8", "--train.lr", "-1", "--run.name=a", "--log.wandb", "--resume", "-v"]
    )
    assert own == ["x", "--gpus", "8", "--resume", "-v"]
    assert config == ["--train.lr", "-1", "--run.name=a", "--log.wandb"]
    assert split_arguments(["--", "--train.lr", "1"]) == (["--", "--train.lr", "1"], [])
    assert split_arguments(["--out=a.b"]) == (["--out=a.b"], [])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gpsu=3", "unknown argument --gpsu (command line); did you mean --gpus?"),
        ("--lr", "unknown argument --lr (command line); did you mean --train.lr?"),
        ("--zzzz", "unknown argument --zzzz (command line)"),
    ],
)
def test_unknown_argument(argument, message):
    assert unknown_argument(argument, ["--gpus", "--help"]) == message


def test_help_lists_every_key_with_its_description_and_default():
    parser = argparse.ArgumentParser(prog="megagpt train")
    config_arguments_help(parser)
    text = " ".join(parser.format_help().split())
    for key in config_keys():
        assert f"--{key} " in text, key
    assert "--train.lr float peak learning rate (default: 0.0006)" in text
    assert "{fp32,bf16,fp16}" in text
