"""What all verbs have in common: how they end, in data_tools/ as in the `megagpt` command, and their arguments."""

import argparse
import json
import os
from pathlib import Path

import pytest

from megagpt import cli
from megagpt.data import cli_clean, tool
from megagpt.data.chinese_text import Rules
from megagpt.data.cli import VERBS
from megagpt.data.tool import Verb, run_tool
from megagpt.errors import ConfigError, DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer


def ending(error: BaseException) -> Verb:
    def run(args: argparse.Namespace) -> int:
        raise error

    return Verb("Fail.", lambda parser: None, run)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("no such corpus"), 2, "error: no such corpus\n"),
        (ConfigError(["first", "second"]), 2, "error: first\nerror: second\n"),
        (PermissionError(13, "Permission denied", "a.idx"), 2, "error: a.idx may not be used by this user (Permission"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_tool_ends_as_the_command_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, said: str
) -> None:
    assert run_tool(ending(error), []) == status
    as_tool = capsys.readouterr().err
    assert as_tool.startswith(said)
    monkeypatch.setattr("megagpt.data.cli.VERBS", {"fail": ending(error)})
    assert cli.main(["data", "fail"]) == status
    assert capsys.readouterr().err == as_tool


@pytest.mark.parametrize("verb", ["build", "array-task", "array-merge", "clean-chinese"])
def test_a_key_that_is_not_utf8(
    tmp_path: Path, toy_tokenizer: SentencePieceTokenizer, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """As Python gives the bytes of a shell in another encoding."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    command = [str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "d"), "--tokenizer", toy_tokenizer.path]
    assert run_tool(VERBS[verb], [*command, "--text-key", os.fsdecode(b"\xd5\xfd\xce\xc4")]) == 2
    assert "error: the argument '\\udcd5\\udcfd\\udcce\\udcc4' is not UTF-8; give it in" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_where_the_system_does_not_say_which_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert tool.usable_cpus() == 3
    parser = argparse.ArgumentParser()
    VERBS["merge"].add_arguments(parser)
    assert parser.parse_args(["out", "in"]).workers == 3


def test_the_rules_of_cleaning_have_one_home() -> None:
    parser = argparse.ArgumentParser()
    cli_clean.add_arguments(parser)
    args = parser.parse_args(["in", "--output", "d", "--tokenizer", "t"])
    assert (args.min_characters, args.min_han) == (Rules().min_characters, Rules().min_han)
