"""What a measurement was made on: machine, versions, commit. In: package names. Out: plain values for a result file.

Names no host, user or folder, so that a result file can be published. Imports only the standard library.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, object]:
    """CPU model, cores this process may use, memory, kernel, Python."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(packages: Sequence[str], python: str = sys.executable) -> dict[str, str | None]:
    """Version of `python` and of each package as it sees it, None where it is not installed there."""
    return dict(
        json.loads(subprocess.run([python, "-c", _VERSIONS, *packages], capture_output=True, check=True).stdout)
    )


_VERSIONS = """
import json, platform, sys
from importlib import metadata
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


def commit(folder: Path = ROOT) -> str | None:
    """The commit checked out in `folder`, with "+changes" where tracked files differ from it; None without git."""
    found = _git(folder, "rev-parse", "--short=12", "HEAD")
    if found is None:
        return None
    return found + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def command_line() -> str:
    """This program and its arguments, as they are typed in the repository's root."""
    program = Path(sys.argv[0]).resolve()
    shown = program.relative_to(ROOT) if program.is_relative_to(ROOT) else Path(program.name)
    return shlex.join(["python", str(shown), *sys.argv[1:]])


def write_whole(path: Path, text: str) -> None:
    """The file has its old text or the new one, also where the program is ended in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def publish(report: dict[str, Any], lines: Sequence[str], output: Path | None) -> None:
    """Print lines of Markdown; write the report as a JSON file and the lines beside it, unless `output` is None."""
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if output is not None:
        write_whole(output, json.dumps(report, indent=1) + "\n")
        write_whole(output.with_suffix(".md"), text)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
