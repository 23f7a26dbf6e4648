"""What this machine has: versions, devices, and packages that are used where they are installed.

In: the installed packages, found without importing them. Out: a report for `megagpt env`, and `check_apex`, which
training calls before anything starts. Must not import torch but to list devices.
"""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

from megagpt import __version__
from megagpt.errors import ConfigError
from megagpt.parallel.upstream import TESTED

REQUIRED = ["torch", "numpy", "deepspeed", "megatron-core", "sentencepiece", "tokenizers", "pydantic", "wandb"]
# Sub-packages that NVIDIA's apex has (github.com/NVIDIA/apex, apex/) and the package of that name on PyPI has not.
_NVIDIA_APEX_PARTS = ("multi_tensor_apply", "optimizers", "normalization")


class Package(NamedTuple):
    """An optional package: `state` is one line for a person."""

    name: str
    installed: bool
    state: str


def check_apex() -> None:
    """Raise ConfigError where `import apex` would find something other than NVIDIA's apex.

    DeepSpeed and megatron-core import apex where it exists. The one on PyPI is a web login package for Pyramid.
    """
    places = _module_places("apex")
    if not places or any(_is_nvidia_apex(place) for place in places):
        return
    version = _version("apex")
    what = f"apex {version} in {places[0]}" if version else f"the folder {places[0]}"
    fix = f"remove it: {sys.executable} -m pip uninstall apex" if version else "remove or rename it"
    raise ConfigError(
        f"{what} is not NVIDIA's apex, but DeepSpeed and megatron-core would import it as such; {fix}. "
        "NVIDIA's apex is optional and is built from source: docs/install.md"
    )


def check_megatron() -> None:
    """Raise ConfigError where the installed megatron-core cannot be imported for want of Triton.

    From 0.17 on its pipeline schedules import triton, also on a machine without a GPU, and its metadata does not say so
    (megatron/core/transformer/moe/paged_stash.py, seen in 0.19.2). 0.16.1 and 0.19.2 pass the parity tests.
    """
    version = _version("megatron-core")
    if version is None or _release(version) < (0, 17) or _module_places("triton"):
        return
    raise ConfigError(
        f"megatron-core {version} imports triton, which is not installed; install it: {sys.executable} -m pip install "
        'triton, or take the release that needs none: pip install "megatron-core==0.16.1"'
    )


def check_upstream() -> None:
    """Raise ConfigError with all that an untested megatron-core or DeepSpeed lacks of what we lean on.

    Versions that the tests pass with are taken at their word; any other is imported and looked through, which takes
    seconds (`parallel/upstream_check.py`).
    """
    if not any(_is_untested(package) for package in TESTED):
        return
    from megagpt.parallel.upstream_check import missing_upstream  # imports torch, megatron-core and DeepSpeed

    missing = missing_upstream()
    if missing:
        raise ConfigError(missing)


def _is_untested(package: str) -> bool:
    version = _version(package)
    return version is not None and package in TESTED and version not in TESTED[package]


def _release(version: str) -> tuple[int, int]:
    """(0, 19) of "0.19.2" and of "0.19.0rc1"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def check_wandb_login() -> None:
    """Raise ConfigError where no Weights & Biases login can be found: `wandb.init` would ask, or fail, much later.

    Looks where wandb does: its variables, the netrc file (an entry for any machine counts: wandb's server can be one's
    own) and its settings file. Needs no network, and does not import wandb.
    """
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return
    home = Path.home()
    settings = Path(os.environ.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb") / "settings"
    named = os.environ.get("NETRC")
    files = [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]
    for path, word in [(settings, "api_key"), *((file, "machine") for file in files)]:
        if path.is_file() and word in path.read_text(encoding="utf-8", errors="replace"):
            return
    raise ConfigError(
        'log.wandb = "online" needs a Weights & Biases login, and there is none: run `wandb login`, set WANDB_API_KEY, '
        'or use log.wandb = "offline"'
    )


def optional_packages() -> list[Package]:
    """apex, Transformer Engine, flash-attn and Triton, as `megagpt env` shows them."""
    return [
        _apex(),
        _optional("Transformer Engine", "transformer_engine", ["transformer-engine", "transformer_engine"]),
        _optional("flash-attn", "flash_attn", ["flash-attn"]),
        _optional("triton", "triton", ["triton", "pytorch-triton"]),
    ]


def environment_lines() -> list[str]:
    """The report of `megagpt env`: a name and a state a line."""
    rows = [
        ("megagpt", f"{__version__} in {Path(__file__).resolve().parent}"),
        ("python", f"{platform.python_version()} in {sys.executable}"),
        ("system", f"{platform.platform()}, {len(os.sched_getaffinity(0))} usable cores"),
    ]
    rows += [(name, _state(name)) for name in REQUIRED]
    rows += [("devices", state) for state in device_states()]
    rows += [(package.name, package.state) for package in optional_packages()]
    return [f"{name:20} {state}" for name, state in rows]


def _state(package: str) -> str:
    version = _version(package) or "not installed"
    return f"{version} (the tests pass with {' and '.join(TESTED[package])})" if _is_untested(package) else version


def device_states() -> list[str]:
    """Every CUDA device in one line, or why there is none. Imports torch."""
    if not _module_exists("torch"):
        return ["unknown: torch is not installed"]
    import torch

    if torch.version.cuda is None:
        return ["CPU only: this build of torch has no CUDA"]
    if not torch.cuda.is_available():
        return [f"CPU only: torch has CUDA {torch.version.cuda} and finds no device or driver"]
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        f"{index}: {device.name}, {device.total_memory / 2**30:.1f} GiB, "
        f"compute capability {device.major}.{device.minor}, CUDA {torch.version.cuda}"
        for index, device in enumerate(devices)
    ]


def main(argv: list[str]) -> int:
    """`megagpt env`: print the report. Raises ConfigError for arguments and for packages that training refuses."""
    if argv in (["-h"], ["--help"]):
        print("usage: megagpt env\n\nVersions, devices and optional packages of this machine.")
        return 0
    if argv:
        raise ConfigError(f"megagpt env takes no arguments, but got {' '.join(argv)}")
    print("\n".join(environment_lines()))
    check_apex()
    check_megatron()
    check_upstream()
    return 0


def _apex() -> Package:
    places = _module_places("apex")
    if not places:
        return Package("apex", False, "not installed (optional)")
    if not any(_is_nvidia_apex(place) for place in places):
        return Package("apex", False, f"not NVIDIA's: {places[0]}")
    kernels = "with" if _module_exists("amp_C") else "without"
    return Package("apex", True, f"{_version('apex') or 'unknown version'}, {kernels} CUDA kernels")


def _optional(name: str, module: str, distributions: list[str]) -> Package:
    if not _module_exists(module):
        return Package(name, False, "not installed (optional)")
    versions = [version for version in map(_version, distributions) if version]
    return Package(name, True, versions[0] if versions else "unknown version")


def _module_exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _module_places(module: str) -> list[Path]:
    """Folders that `import module` would use; empty where there is no such module. Imports nothing."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(place) for place in spec.submodule_search_locations]
    return [Path(str(spec.origin))]


def _is_nvidia_apex(place: Path) -> bool:
    return all((place / part).is_dir() for part in _NVIDIA_APEX_PARTS)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
