"""Package metadata: what megagpt needs, its extras, the `megagpt` command, and the configurations that ship with it.

Ranges here say what the code needs; the exact versions that are tested stand in `constraints/cpu.txt`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

REQUIRES = [
    "torch>=2.6",
    "numpy>=1.26",
    "deepspeed>=0.19",
    "megatron-core>=0.16",
    "sentencepiece>=0.2",
    "tokenizers>=0.21",
    "safetensors>=0.5",
    "pydantic>=2.10",
    "pydantic-settings>=2.7",
    "pyarrow>=17",
    "zstandard>=0.23",
    "rich>=13",
    "tensorboard>=2.16",
    "wandb>=0.19",
    "setuptools>=68",  # torch builds extensions with it, and tensorboard and DeepSpeed import it
    "tomli>=2; python_version < '3.11'",
]

EXTRAS = {
    "export": ["transformers>=4.57"],
    "dev": [
        "pytest>=8",
        "pytest-timeout>=2.3",
        "hypothesis>=6.100",
        "ruff>=0.15",
        "mypy>=1.15",
    ],
    # CUDA builds of torch bring Triton with them on Linux; named here for builds of torch that do not.
    "gpu": ["triton>=3.2; platform_system == 'Linux'"],
}


def read_version() -> str:
    """The version in megagpt/__init__.py, read as text: importing the package is not needed to install it."""
    text = (ROOT / "megagpt" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert match is not None, "megagpt/__init__.py has no line __version__ = ..."
    return match[1]


def config_files() -> list[tuple[str, list[str]]]:
    """(folder under the environment's prefix, files) of every shipped TOML, keeping the folders of configs/."""
    folders: dict[str, list[str]] = {}
    for path in sorted((ROOT / "configs").rglob("*.toml")):
        relative = path.relative_to(ROOT)
        folders.setdefault(f"share/megagpt/{relative.parent.as_posix()}", []).append(relative.as_posix())
    return list(folders.items())


setup(
    name="megagpt",
    version=read_version(),
    description="Pretraining of GPT-3-family language models, from one laptop to a GPU cluster",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["megagpt", "megagpt.*"]),
    data_files=config_files(),
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megagpt = megagpt.cli:main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
