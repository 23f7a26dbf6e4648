"""The `megagpt` command: finds the verb, hands it the rest of the command line, and says a user's error plainly.

In: arguments. Out: an exit status: 0 done, 2 a user's error, 130 interrupted, or what the verb returns. Must not import
anything heavy: a verb's module is imported when the verb is called.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from megagpt import __version__
from megagpt.config_text import nearest
from megagpt.errors import ConfigError, MegagptError, no_rights

USER_ERROR = 2
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it
INTERRUPTED = 130  # 128 + SIGINT


class Command(NamedTuple):
    """A verb: the module that has it, and how that module offers it.

    `function` names a `main(argv) -> int`; empty: the module has `add_arguments(parser)` and `run(args) -> int`.
    With `has_subverbs` the module has VERBS instead, a mapping from each second word to those two.
    """

    help: str
    module: str
    function: str = ""
    has_subverbs: bool = False


COMMANDS: dict[str, Command] = {
    "plan": Command("what a configuration comes to, or every problem", "megagpt.plan_cli", "run_plan_command"),
    "tokenizer": Command("train a tokenizer on a corpus", "megagpt.tokenizer.cli", has_subverbs=True),
    "data": Command("sample corpora; build and inspect datasets", "megagpt.data.cli", has_subverbs=True),
    "train": Command("train a configuration, or continue where it stopped", "megagpt.training.cli", "main"),
    "launch": Command("start a run with torchrun or DeepSpeed, or as a SLURM job", "megagpt.launch.cli", "main"),
    "health": Command("is each node fit to train on?", "megagpt.launch.health_cli", "main"),
    "evaluate": Command("loss of a checkpoint on held-out text", "megagpt.training.evaluate_cli", "main"),
    "generate": Command("text from a checkpoint", "megagpt.inference.cli"),
    "export": Command("a checkpoint for other software", "megagpt.export.cli"),
    "checkpoint": Command("look into checkpoints, verify and prune them", "megagpt.checkpoint.cli", "main"),
    "runs": Command("list runs with their state, or show one", "megagpt.runs.cli", "main"),
    "env": Command("versions, devices and optional packages of this machine", "megagpt.environment", "main"),
}


def main(argv: list[str] | None = None) -> int:
    """Run `megagpt ARGV...` (default: the process's arguments) and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    return status_of(lambda: dispatch(arguments))


def status_of(run: Callable[[], int]) -> int:
    """The exit status of a command that `run` is; a user's error is printed, in a line for each problem."""
    try:
        status = run()
        sys.stdout.flush()
        return status
    except (MegagptError, PermissionError) as raised:
        error = no_rights(raised) if isinstance(raised, PermissionError) else raised
        for problem in error.problems if isinstance(error, ConfigError) else [str(error)]:
            print(f"error: {problem}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it ends
        return BROKEN_PIPE


def dispatch(arguments: list[str]) -> int:
    """Run the verb that `arguments` begin with. Raises ConfigError for an unknown one, and what the verb raises."""
    if not arguments:
        print(usage(), file=sys.stderr)
        return USER_ERROR
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"megagpt {__version__}")
        return 0
    if name not in COMMANDS:
        raise ConfigError(_unknown("megagpt", name, list(COMMANDS)))
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    if command.has_subverbs:
        return _run_subverb(name, command, module.VERBS, rest)
    if command.function:
        return int(getattr(module, command.function)(rest))
    parser = argparse.ArgumentParser(prog=f"megagpt {name}", description=_sentence(command.help), allow_abbrev=False)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(rest)))


def usage() -> str:
    """The text of `megagpt --help`."""
    lines = ["usage: megagpt COMMAND [arguments]", "", "commands:"]
    lines += [f"  {name:13} {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "megagpt COMMAND --help says more; --version prints the version."]
    return "\n".join(lines)


def _run_subverb(name: str, command: Command, verbs: dict, arguments: list[str]) -> int:
    """`megagpt NAME SUBVERB ...`; `verbs` maps a subverb to (help, add_arguments, run)."""
    prog = f"megagpt {name}"
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"usage: {prog} COMMAND [arguments]", "", "commands:"]
        lines += [f"  {subverb:13} {verb.help}" for subverb, verb in verbs.items()]
        print("\n".join(lines), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else USER_ERROR
    if arguments[0] not in verbs:
        raise ConfigError(_unknown(prog, arguments[0], list(verbs)))
    verb = verbs[arguments[0]]
    parser = argparse.ArgumentParser(prog=f"{prog} {arguments[0]}", description=verb.help, allow_abbrev=False)
    verb.add_arguments(parser)
    return int(verb.run(parser.parse_args(arguments[1:])))


def _unknown(prog: str, name: str, names: list[str]) -> str:
    """The message for a verb that does not exist."""
    near = nearest(name, names)
    offer = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(names)}"
    return f"{prog} has no command {name!r}; {offer}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
