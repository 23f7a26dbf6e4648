"""A run as a SLURM job: launch/slurm.sbatch with what was asked for written into it, and its submission.

In: the script's text, what the user asked for, the configuration's arguments. Out: the text of a script that needs no
arguments, and the job's number. `render` is pure.
"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from megagpt.errors import ConfigError

SCRIPT = Path("launch", "slurm.sbatch")
_DIRECTIVE = "#SBATCH "
_WARNING_SECONDS = 300  # --signal in the script


class JobOptions(NamedTuple):
    """What a job is asked for; None and empty: the script's own value, or the cluster's default."""

    name: str
    nodes: int
    gpus_per_node: int
    ranks_per_node: int
    log: Path  # the job's log, with SLURM's %j for its number
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    cpus_per_task: int | None = None
    extra: tuple[str, ...] = ()  # further options of sbatch


class JobPlace(NamedTuple):
    """`repository` has the launch scripts and the environment; `folder` is where relative paths begin."""

    repository: Path
    folder: Path


def check_time_limit(text: str) -> None:
    """Refuse a limit of sbatch's form that leaves less time to train than the warning before its end takes."""
    form = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if form is None:
        raise ConfigError(f"--time {text} is no time limit; write minutes, HH:MM:SS or D-HH:MM:SS, such as 24:00:00")
    days, *parts = (int(part) if part else 0 for part in form.groups())
    given = [int(part) for part in form.groups()[1:] if part]
    if form[1] is None and len(given) < 3:  # MM or MM:SS
        parts = [0, *given, *[0] * (2 - len(given))]
    hours, minutes, seconds = parts
    if ((days * 24 + hours) * 60 + minutes) * 60 + seconds <= 2 * _WARNING_SECONDS:
        raise ConfigError(
            f"--time {text} is too short: the job saves and stops {_WARNING_SECONDS} s before its end; use more than "
            f"{2 * _WARNING_SECONDS // 60} minutes"
        )


def find_repository() -> Path:
    """The folder with launch/slurm.sbatch: the current one, or that of this package. Raises ConfigError."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / SCRIPT).is_file():
            return folder
    raise ConfigError(
        f"there is no {SCRIPT} here or beside the installed package; run this in megagpt's repository, or install the "
        "package from there: pip install -e ."
    )


def render(script: str, options: JobOptions, place: JobPlace, arguments: list[str]) -> str:
    """The text of a script for one job. Raises ConfigError where SLURM could not read what is asked for."""
    directives = dict(_split(line) for line in script.splitlines() if line.startswith(_DIRECTIVE))
    directives |= _asked(options)
    for word in options.extra:
        if not word.startswith("--"):
            raise ConfigError(f"--sbatch {word!r} is no option of sbatch; write it as --sbatch=--qos=high")
        directives |= [_split(f"{_DIRECTIVE}{word}")]
    head, body = _parts(script)
    block = [f"{_DIRECTIVE}{_quoted(name, value)}" for name, value in directives.items()]
    settings = [
        "# what `megagpt launch slurm` was asked for",
        f"MEGAGPT_ROOT={shlex.quote(str(place.repository))}",
        f"RANKS_PER_NODE={options.ranks_per_node}",
        f"cd {shlex.quote(str(place.folder))}",
        f"set -- {shlex.join(arguments)}",
    ]
    return "\n".join([*head, *block, *settings, *body]) + "\n"


def submit(script: Path) -> str:
    """The job's number. Raises ConfigError with sbatch's own words where it refuses."""
    try:
        ended = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no sbatch here; submit {script} on a machine that has SLURM's commands: sbatch {script}"
        ) from None
    if ended.returncode:
        raise ConfigError(f"sbatch refused {script}: {ended.stderr.strip()}")
    return ended.stdout.strip().split(";")[0]  # with several clusters: NUMBER;CLUSTER


def _asked(options: JobOptions) -> dict[str, str | None]:
    asked: dict[str, str | None] = {
        "--job-name": options.name,
        "--nodes": str(options.nodes),
        "--gpus-per-node": str(options.gpus_per_node),
        "--output": str(options.log),
        "--time": options.time,
        "--partition": options.partition,
        "--account": options.account,
        "--cpus-per-task": str(options.cpus_per_task) if options.cpus_per_task else None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _split(line: str) -> tuple[str, str | None]:
    """Option and value of an #SBATCH line; None for an option without one."""
    name, equals, value = line.removeprefix(_DIRECTIVE).strip().partition("=")
    return name, value if equals else None


def _quoted(name: str, value: str | None) -> str:
    """As sbatch reads it: it takes quotes and backslashes as a shell does, and `#` for a comment."""
    if value is None:
        return name
    if re.fullmatch(r"[\w@%+:,./=-]+", value, re.ASCII):
        return f"{name}={value}"
    if any(character in value for character in "\n\r'"):
        raise ConfigError(
            f"{name} {value!r} cannot be written into a job's script; choose one without ' and line breaks"
        )
    return f"{name}='{value}'"


def _parts(script: str) -> tuple[list[str], list[str]]:
    """The lines before the first #SBATCH line, and those after the last one."""
    lines = script.splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith(_DIRECTIVE)]
    assert places, "the script has no #SBATCH line"
    return lines[: places[0]], lines[places[-1] + 1 :]
