"""`--profile` and `--profile-ranks` on the command line: what they mean, and what is refused with which words."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from megagpt.errors import ConfigError
from megagpt.training import cli
from megagpt.training.profile_options import (
    ProfiledSteps,
    ProfileOptions,
    add_profile_options,
    chosen_ranks,
    chosen_steps,
    parse_profile,
    profile_words,
    profiled_steps,
    settle_profile_words,
)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("config")
    add_profile_options(parser)
    return parser.parse_args(settle_profile_words(list(words)))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["run.toml"], None),
        (["run.toml", "--profile"], ProfileOptions(None, None)),
        (["--profile", "run.toml"], ProfileOptions(None, None)),  # the name is no STEPS
        (["--profile", "125m.toml"], ProfileOptions(None, None)),
        (["run.toml", "--profile", "7"], ProfileOptions((7, 7), None)),
        (["--profile", "7-9", "run.toml"], ProfileOptions((7, 9), None)),
        (["run.toml", "--profile=7-9", "--profile-ranks", "all"], ProfileOptions((7, 9), None, True)),
        (["run.toml", "--profile", "--profile-ranks", "8-10,0"], ProfileOptions(None, (0, 8, 9, 10))),
    ],
)
def test_words(words: list[str], wanted: ProfileOptions | None) -> None:
    options = parsed(*words)
    assert parse_profile(options) == wanted
    assert parse_profile(parsed("run.toml", *profile_words(options))) == wanted  # as a launcher hands them on


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profile-ranks", "0"], "--profile-ranks says where --profile runs: add --profile"),
        (["--profile", "0"], "--profile 0 names no steps; use one such as 500, or a range such as 500-502"),
        (["--profile", "9-7"], "--profile 9-7 names no steps"),
        (["--profile", "3..5"], "--profile 3..5 names no steps"),
        (["--profile", "1-100"], "--profile 1-100 is 100 steps; a trace of more than 20 is too large to be looked at"),
        (["--profile", "--profile-ranks", "first"], "--profile-ranks first names no ranks; use all, or some such as"),
        (["--profile", "--profile-ranks", "3-1"], "--profile-ranks 3-1 names no ranks"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_profile(parsed("run.toml", *words))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("first_step", "num_steps", "steps"),
    [(0, 100, [3, 4]), (40, 100, [43, 44]), (0, 5, [3, 4]), (0, 4, [2, 3]), (0, 3, [1, 2]), (0, 2, [1]), (0, 1, [0])],
)
def test_the_sessions_fourth_and_fifth_step_or_its_last(first_step: int, num_steps: int, steps: list[int]) -> None:
    assert list(chosen_steps(ProfileOptions(None, None), first_step, num_steps)) == steps


def test_steps_by_their_numbers() -> None:
    assert list(chosen_steps(ProfileOptions((41, 43), None), 40, 50)) == [40, 41, 42]
    assert list(chosen_steps(ProfileOptions((40, 42), None), 40, 50)) == [40, 41]  # 40 was trained before
    assert list(chosen_steps(ProfileOptions((30, 31), None), 40, 50)) == []
    with pytest.raises(ConfigError, match="--profile 50-51: this run trains steps 1 to 50; name some of them"):
        chosen_steps(ProfileOptions((50, 51), None), 40, 50)


def test_ranks() -> None:
    layout: Any = SimpleNamespace(world_size=8, pipeline=4)
    assert chosen_ranks(ProfileOptions(None, None), layout) == (0, 2, 4, 6)
    assert chosen_ranks(ProfileOptions(None, (1, 7)), layout) == (1, 7)
    assert chosen_ranks(ProfileOptions(None, None, all_ranks=True), layout) == tuple(range(8))
    with pytest.raises(ConfigError, match="--profile-ranks names rank 8; this run has ranks 0 to 7, or use all"):
        chosen_ranks(ProfileOptions(None, (1, 8)), layout)


def test_steps_that_were_trained_before_stop_no_run() -> None:
    """A launcher starts a run again with the words it was given at first."""
    layout = SimpleNamespace(world_size=1, pipeline=1)
    prepared: Any = SimpleNamespace(first_step=5, plan=SimpleNamespace(num_steps=9, layout=layout))
    assert profiled_steps(ProfileOptions((3, 4), None), prepared) is None
    complete: Any = SimpleNamespace(first_step=9, plan=SimpleNamespace(num_steps=9, layout=layout))
    assert profiled_steps(ProfileOptions(None, None), complete) is None


def test_what_was_asked_for_reaches_the_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    plan = SimpleNamespace(num_steps=10, layout=SimpleNamespace(world_size=4, pipeline=2))
    prepared = SimpleNamespace(plan=plan, first_step=0)
    monkeypatch.setattr("megagpt.training.prepare.prepare_run", lambda *arguments, **options: prepared)
    monkeypatch.setattr("megagpt.training.session.describe_start", lambda prepared, console: None)
    monkeypatch.setattr("megagpt.training.run_session.RunSession.start", lambda session, prepared: None)
    monkeypatch.setattr("megagpt.training.session.run_training", lambda *arguments: seen.append(arguments[-1]))
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")  # what it sets goes again with the test
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    assert cli.main(["gpt3-base"]) == 0
    assert cli.main(["--profile", "gpt3-base"]) == 0
    assert cli.main(["gpt3-base", "--profile", "6", "--profile-ranks=all"]) == 0
    assert seen == [None, ProfiledSteps(range(3, 5), (0, 2)), ProfiledSteps(range(5, 6), (0, 1, 2, 3))]
    assert cli.main(["gpt3-base", "--profile", "11"]) == 2
    assert cli.main(["gpt3-base", "--profile", "6", "--profile-ranks", "4"]) == 2
    prepared.first_step = 6
    assert cli.main(["gpt3-base", "--profile", "6"]) == 0
    said = capsys.readouterr()
    assert "no profile: this session begins with step 7, after those of --profile" in said.out
    assert seen[3:] == [None]
    assert "error: --profile-ranks names rank 4; this run has ranks 0 to 3, or use all" in said.err
    assert "error: --profile 11: this run trains steps 1 to 10; name some of them" in said.err
    assert cli.main(["gpt3-base", "--profil"]) == 2
    assert "error: unknown argument --profil (command line); did you mean --profile" in capsys.readouterr().err
