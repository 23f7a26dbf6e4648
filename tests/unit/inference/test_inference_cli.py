"""`megagpt generate`: what it prints, and what it refuses."""

import argparse
import io
from pathlib import Path

import pytest

from megagpt.cli import main
from megagpt.errors import GenerationError
from megagpt.inference import cli
from megagpt.inference.settings import SamplingSettings
from megagpt.inference.text import TextStep


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(["checkpoint", *arguments])


def test_arguments_become_settings() -> None:
    assert cli.settings_from(parse()) == SamplingSettings()
    options = {"max-new-tokens": 3, "temperature": 0.5, "top-k": 4, "top-p": 0.6, "repetition-penalty": 1.7, "seed": 8}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert cli.settings_from(parse(*words)) == SamplingSettings(3, 0.5, 4, 0.6, 1.7, False, 8)
    assert cli.settings_from(parse("--greedy", "--repetition-penalty", "1.2")) == SamplingSettings(
        greedy=True, repetition_penalty=1.2
    )


def test_options_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(GenerationError, match=r"--greedy always .*, so --temperature, --top-p, --num-samples would do"):
        cli.settings_from(parse("--greedy", "--temperature", "1", "--top-p", "0.5", "--num-samples", "2"))


def test_wrong_values_are_refused_before_the_checkpoint_is_read() -> None:
    with pytest.raises(GenerationError, match="--num-samples 0 is out of range; use a whole number from 1"):
        cli.run(parse("--num-samples", "0"))
    with pytest.raises(GenerationError, match=r"top_p = 3\.0 is out of range"):
        cli.run(parse("--top-p", "3"))


def test_the_command_prints_prompt_and_text_and_says_why_it_stopped(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", str(checkpoint), "--prompt", "山脚下", "--max-new-tokens", "5", "--greedy"]
    assert main(command) == 0
    cached = capsys.readouterr()
    assert cached.out.startswith("山脚下")
    assert len(cached.out) > len("山脚下\n")
    assert "\x1b" not in cached.out, "plain where it is not a terminal"
    assert "[5 tokens, " in cached.err
    assert "stopped: --max-new-tokens reached]" in cached.err
    assert main([*command, "--no-cache"]) == 0
    assert capsys.readouterr().out == cached.out


def test_several_prompts_give_what_each_gives_alone(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(checkpoint), "--max-new-tokens", "6", "--seed", "3"]
    alone = []
    for prompt in ("山脚下", "河边"):
        assert main([*command, "--prompt", prompt]) == 0
        alone.append(capsys.readouterr().out)
    assert main([*command, "--prompt", "山脚下", "--prompt", "河边"]) == 0
    assert capsys.readouterr().out == "\n".join(alone)


def test_samples_differ_and_repeat_with_the_seed(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(checkpoint), "--max-new-tokens", "9", "--temperature", "2", "--top-p", "1"]
    assert main([*command, "--num-samples", "2", "--seed", "5"]) == 0
    both = capsys.readouterr().out
    assert main([*command, "--seed", "6"]) == 0
    second = capsys.readouterr().out
    first, _, rest = both.removeprefix("--- sample 1 of 2, seed 5\n").partition("--- sample 2 of 2, seed 6\n")
    assert rest == second != first


def test_a_prompt_that_is_too_long_is_a_user_error(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(checkpoint), "--prompt", "渔" * 30]) == 2
    assert "error: the prompt has 30 tokens and the model's context is 24" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_prompt_bold_and_obeys_no_generated_control_character() -> None:
    out = Terminal()
    cli._print_sample("甲\x07", iter([TextStep("\x1b[2J乙\n", None), TextStep("\t丙", "eod")]), out)
    assert out.getvalue() == "\x1b[1m甲\ufffd\x1b[0m\ufffd[2J乙\n\t丙\n"


def test_a_file_gets_the_text_unchanged() -> None:
    out = io.StringIO()
    cli._print_sample("甲", iter([TextStep("\x1b乙\r\n", "length")]), out)
    assert out.getvalue() == "甲\x1b乙\r\n\n"
