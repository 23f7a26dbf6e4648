"""The folder of an export: written beside its place under a temporary name, and renamed when it is whole and true."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megagpt.durable import flush_folder
from megagpt.errors import ConfigError, ExportError

REPORT_NAME = "export_report.json"


def check_output(output: Path, overwrite: bool) -> None:
    """Raise ConfigError where `output` exists and is not an earlier export that may be replaced."""
    if not output.exists() and not output.is_symlink():
        return
    if not overwrite:
        raise ConfigError(f"{output} exists; choose another --output, or replace an earlier export with --overwrite")
    if output.is_symlink() or not output.is_dir():
        raise ConfigError(f"{output} is not a folder; choose another --output")
    if any(output.iterdir()) and not (output / REPORT_NAME).is_file():
        raise ConfigError(
            f"{output} is not an export (it has no {REPORT_NAME}), so --overwrite leaves it alone; "
            "choose another --output"
        )


@contextmanager
def temporary_beside(output: Path) -> Iterator[Path]:
    """A new folder on the file system of `output`, removed again unless it was renamed; parents are made as needed.

    Raises ConfigError where it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error}; choose another --output") from None
    try:
        yield folder
    except OSError as error:
        raise ExportError(f"could not write {output}: {error}; free space or choose another --output") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, output: Path) -> None:
    """Make the finished `folder` appear as `output`, an earlier export moved aside first and removed last."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)  # mkdtemp makes folders private, and some libraries their files
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o777 & ~umask)
            flush_folder(path)
            continue
        path.chmod(0o666 & ~umask)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    flush_folder(folder)
    if not output.exists():
        folder.rename(output)
    else:
        earlier = folder.with_name(folder.name + ".earlier")
        output.rename(earlier)
        try:
            folder.rename(output)
        except OSError:
            earlier.rename(output)
            raise
        shutil.rmtree(earlier)
    flush_folder(output.parent)
