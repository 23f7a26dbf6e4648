"""The wheel has every module, every configuration and the command; the pins cover what setup.py asks for."""

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from megagpt import __version__

ROOT = Path(__file__).resolve().parents[2]
COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))
COPIED = ["setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built without a network from a copy, so that no build folder is left in the repository."""
    source = tmp_path_factory.mktemp("source")
    for name in COPIED:
        shutil.copy(ROOT / name, source / name)
    for folder in ("megagpt", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    output = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    ended = subprocess.run([*command, "--wheel-dir", str(output), str(source)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (path,) = output.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler: the native core is left out")
@pytest.mark.parametrize("name", ["_attention", "_encoder", "_optimizer", "_pointwise", "_samples", "_softmax"])
def test_the_installed_package_has_its_native_modules(name: str) -> None:
    """They are optional, so an install says nothing where they do not compile."""
    importlib.import_module(f"megagpt.native.{name}")


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"megagpt-{__version__}.dist-info/{name}").decode()


def pinned(version: tuple[int, int]) -> dict[str, str]:
    """Package to version of constraints/cpu.txt for a Python version; fails where a line is not an exact pin."""
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([^;\s]+)(?:; python_version (<|>=) '3\.11')?", line)
        assert match is not None, line
        if match[3] is None or (match[3] == "<") == (version < (3, 11)):
            assert match[1] not in pins, line
            pins[match[1]] = match[2]
    return pins


def test_the_wheel_has_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if name.startswith("megagpt/")}
    native = {
        name
        for name in inside
        if re.fullmatch(r"megagpt/native/_(attention|encoder|optimizer|pointwise|samples|softmax)\.[\w-]+\.so", name)
    }
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "megagpt").rglob("*.py*") if path.suffix != ".pyc"}
    assert inside - native == modules
    assert len(native) == (6 if COMPILER else 0), native
    others = {name.split("/")[0] for name in wheel.namelist()} - {"megagpt"}
    assert others == {f"megagpt-{__version__}.dist-info", f"megagpt-{__version__}.data"}


def test_the_wheel_has_every_configuration_where_it_is_looked_for(wheel: zipfile.ZipFile) -> None:
    prefix = f"megagpt-{__version__}.data/data/share/megagpt/"
    inside = {name.removeprefix(prefix) for name in wheel.namelist() if name.startswith(prefix)}
    files = [path for path in (ROOT / "configs").rglob("*") if path.suffix in (".toml", ".json")]
    assert inside == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"configs/models/gpt3-175b.toml", "configs/deepspeed/gpt3-13b-8xa100-80g.json"} <= inside


def test_the_wheel_installs_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    assert "megagpt = megagpt.cli:main" in metadata(wheel, "entry_points.txt")
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_metadata(wheel: zipfile.ZipFile) -> None:
    text = metadata(wheel, "METADATA")
    assert f"\nVersion: {__version__}\n" in text
    assert "\nRequires-Python: >=3.10\n" in text
    assert {"dev", "export", "gpu"} <= set(re.findall(r"^Provides-Extra: (\S+)$", text, re.MULTILINE))
    required = re.findall(r"^Requires-Dist: ([A-Za-z0-9_.-]+)", text, re.MULTILINE)
    assert {"torch", "numpy", "sentencepiece", "deepspeed", "megatron-core", "wandb", "pydantic"} <= set(required)
    # exporting a SentencePiece tokenizer imports sentencepiece_model_pb2
    assert re.search(r'^Requires-Dist: protobuf.*extra == "export"', text, re.MULTILINE)
    assert "apex" not in required  # PyPI's package of that name is unrelated


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12)])
def test_every_requirement_is_pinned(wheel: zipfile.ZipFile, version: tuple[int, int]) -> None:
    pins = pinned(version)
    for line in re.findall(r"^Requires-Dist: (.+)$", metadata(wheel, "METADATA"), re.MULTILINE):
        name = re.match(r"[A-Za-z0-9_.-]+", line)
        assert name is not None
        if 'extra == "gpu"' in line or ('python_version < "3.11"' in line and version >= (3, 11)):
            continue
        assert name[0].lower() in pins or name[0].lower() == "triton", line  # constraints/triton.txt, without a GPU


def test_scripts_are_valid_bash() -> None:
    scripts = [*(ROOT / "launch").iterdir(), ROOT / "tests" / "run.sh", ROOT / ".ci" / "run"]
    assert len(scripts) >= 7
    for script in scripts:
        ended = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
