"""The `megagpt` command: verbs, typos, errors, exit statuses, and that it starts quickly."""

import importlib
import subprocess
import sys
import time
from types import ModuleType

import pytest

from megagpt import __version__, cli
from megagpt.errors import ConfigError, DataError


def offer(monkeypatch: pytest.MonkeyPatch, **members: object) -> None:
    """Makes `megagpt plan` use a stand-in module with these members, reached as a main(argv)."""
    module = ModuleType("stand_in")
    for name, member in members.items():
        setattr(module, name, member)
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setitem(cli.COMMANDS, "plan", cli.Command("help", "stand_in", "main"))


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_verb_is_there(name: str) -> None:
    command = cli.COMMANDS[name]
    module = importlib.import_module(command.module)
    if command.has_subverbs:
        assert all(verb.help and callable(verb.run) for verb in module.VERBS.values())
    elif command.function:
        assert callable(getattr(module, command.function))
    else:
        assert callable(module.add_arguments)
        assert callable(module.run)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_verb_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main([name, "--help"])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 0
    assert f"usage: megagpt {name}" in capsys.readouterr().out


def test_arguments_after_the_verb_and_the_status_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    offer(monkeypatch, main=lambda argv: seen.append(argv) or 3)
    assert cli.main(["plan", "x.toml", "--train.lr", "1"]) == 3
    assert seen == [["x.toml", "--train.lr", "1"]]


def test_a_file_without_rights_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: list[str]) -> int:
        raise PermissionError(13, "Permission denied", argv[0])

    offer(monkeypatch, main=fail)
    assert cli.main(["plan", "secret/x.toml"]) == 2
    message = "error: secret/x.toml may not be used by this user (Permission denied); give it the rights\n"
    assert capsys.readouterr().err == message


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS)


def test_nothing_said_shows_the_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: megagpt COMMAND")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"megagpt {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: megagpt has no command 'trian'; did you mean train?\n"),
        (["data", "bild"], "error: megagpt data has no command 'bild'; did you mean build?\n"),
    ],
)
def test_a_typo_offers_the_nearest_verb(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == message


def test_a_verb_like_no_other_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["xyzzy"]) == 2
    assert f"no command 'xyzzy'; use one of {', '.join(cli.COMMANDS)}" in capsys.readouterr().err


def test_a_group_without_a_subverb_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data"]) == 2
    assert "  build " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (ConfigError(["a is wrong", "b is wrong"]), "error: a is wrong\nerror: b is wrong\n"),
        (DataError("corpus.jsonl is empty"), "error: corpus.jsonl is empty\n"),
    ],
)
def test_a_users_error_is_printed_without_traceback(
    error: Exception, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    offer(monkeypatch, main=fail)
    assert cli.main(["plan"]) == 2
    captured = capsys.readouterr()
    assert captured.err == printed
    assert captured.out == ""


def test_our_own_mistake_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise AssertionError("7 != 8")

    offer(monkeypatch, main=fail)
    with pytest.raises(AssertionError, match="7 != 8"):
        cli.main(["plan"])


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    offer(monkeypatch, main=interrupted)
    assert cli.main(["plan"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_stops_early_is_no_error() -> None:
    script = """if True:
        import sys, types
        from megagpt import cli
        sys.modules["stand_in"] = types.SimpleNamespace(main=lambda argv: print("x" * 10**6) or 0)
        cli.COMMANDS["plan"] = cli.Command("help", "stand_in", "main")
        sys.exit(cli.main(["plan"]))
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = """if True:
        import sys
        from megagpt import cli
        cli.main(["--help"])
        heavy = {"torch", "numpy", "pydantic", "rich", "deepspeed"} & set(sys.modules)
        assert not heavy, heavy
    """
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        assert ended.returncode == 0, ended.stderr
    assert min(seconds) < 0.3  # 0.03 s where it was written
