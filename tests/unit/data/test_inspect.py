"""What inspect says of a dataset is what is in it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from megagpt.data import dataset_stats, inspect
from megagpt.data.builder import build_dataset
from megagpt.data.cli import VERBS
from megagpt.data.indexed import IndexedDataset
from megagpt.data.inspect import Shown, bar, inspect_dataset
from megagpt.data.sidecar import Source
from megagpt.data.token_text import context_id, token_text, visible
from megagpt.data.tool import run_tool
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import END_OF_DOCUMENT
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.hashed import random_documents, sidecar_of, write_dataset, write_files, write_sidecar


def shown_of(prefix: Path, shown: Shown | None = None) -> str:
    return "\n".join(inspect_dataset(str(prefix), None, shown or Shown()))


def test_counts_bars_and_samples_of_a_built_corpus(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    for name, texts in (("甲.jsonl", ["中文", "a b", "中文 中文"]), ("b.jsonl", ["the the\n", "x"])):
        (tmp_path / name).write_text("".join(f'{{"text": {text!r}}}\n'.replace("'", '"') for text in texts))
    inputs = [str(tmp_path / "甲.jsonl"), str(tmp_path / "b.jsonl")]
    build_dataset(inputs, tmp_path / "d", toy_tokenizer)
    dataset = IndexedDataset(tmp_path / "d")
    text = "\n".join(inspect_dataset(str(tmp_path / "d"), toy_tokenizer, Shown()))
    assert "documents      5 in 5 sequences" in text
    assert f"tokens         {dataset.num_tokens}; largest id" in text
    assert f"belongs to     {toy_tokenizer.path}: yes" in text
    ends = f"{toy_tokenizer.eod_id:>9} {5:>14} {5 / dataset.num_tokens:7.2%}"
    assert re.search(re.escape(ends) + r"  █+\S*\s+<\|endoftext\|>", text)
    sizes = [dataset.document(number).size for number in range(5)]
    first = f"{3:12} {sum(sizes[:3]):15} {sum(sizes[:3]) / sum(sizes):7.1%} {10 / (sum(sizes[:3]) - 3):13.3f}"
    assert f"{first} {22 / (sum(sizes[:3]) - 3):13.3f}   {inputs[0]} (" in text
    for number, content in ((0, "中文"), (2, "中文 中文"), (4, "x")):  # the first, the middle one, the last
        assert f"document {number}, first {sizes[number]} of {sizes[number]} tokens:\n{content}<|endoftext|>" in text
    assert "document 1," not in text
    one = "\n".join(inspect_dataset(str(tmp_path / "d"), toy_tokenizer, Shown(document=3, num_frequent=0)))
    assert "document 3, first" in one
    assert "document 0," not in one
    assert "most frequent" not in one


def test_lengths_and_ids_without_a_tokenizer(tmp_path: Path) -> None:
    documents = [[5, 1], [6, 7, 1], [5, 5, 5, 5, 1], [8, 1]]
    write_dataset(tmp_path / "d", documents)
    text = shown_of(tmp_path / "d", Shown(num_frequent=2))
    assert "document size  2, 2, 2, 3, 5 tokens (least, quartiles, most); 3.0 on average" in text
    assert re.search(r"2 – 3 +3  75\.00%  █{40}\n +4 – 7 +1  25\.00%  █{13}▍\n", text)
    assert re.search(r"\n +5 +5  41\.67%  █{24}\n +1 +4  33\.33%  █+\S?\nhalf of all tokens are 2 different ids", text)
    assert "never used     995 of 1,000 ids (99.5%)" in text
    assert "document 1, first 3 of 3 tokens:\n6 7 1\n" in text


def test_what_is_not_known_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = random_documents(1, 30)
    write_files(tmp_path / "d", documents)
    assert "tokenizer      unknown: there is no .json" in shown_of(tmp_path / "d")
    assert "never used" not in shown_of(tmp_path / "d"), "of an unknown vocabulary"
    old = replace(
        sidecar_of(documents, [], [("x", 30)], skipped={"not JSON": 2000}),
        num_characters=0,
        text_bytes=0,
        sources=tuple(Source(f"file{number}\udcff", None, 0, 0, 0, 0) for number in range(23)),
    )
    write_sidecar(tmp_path / "d", old)
    text = shown_of(tmp_path / "d")
    assert "text           size not known\n" in text
    assert "left out       2,000: not JSON" in text
    assert "made from (what came from each is not known: an older format)\n  file0\\udcff (size unknown)" in text
    assert "  and 3 more files" in text
    monkeypatch.setattr(dataset_stats, "_BLOCK_TOKENS", 8)
    monkeypatch.setattr(inspect, "count_tokens", lambda *args: dataset_stats.count_tokens(*args, limit=16))
    tokens = sum(map(len, documents))
    assert re.search(rf"most frequent ids \(of \d+ tokens, evenly spread over the {tokens}\)", shown_of(tmp_path / "d"))


def test_many_sources_show_the_largest_in_their_order(tmp_path: Path) -> None:
    documents = [[2] * (1 + number % 7) + [1] for number in range(60)]
    write_dataset(tmp_path / "d", documents, sources=[(f"s{number:02}", 1) for number in range(60)])
    table = shown_of(tmp_path / "d").split("source\n")[1].split("\n\n")[0].splitlines()
    names = [line.split()[-3] for line in table[:-1]]
    assert (len(names), names) == (20, sorted(names))
    assert {"s06", "s13", "s55"} <= set(names)
    assert "s00" not in names
    assert table[-1] == "  and 40 more files"


def test_the_name_of_a_file_stands_for_its_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", random_documents(2, 5))
    assert shown_of(tmp_path / "d.idx") == shown_of(tmp_path / "d.json") == shown_of(tmp_path / "d")


def test_an_empty_share_and_a_missing_document(tmp_path: Path) -> None:
    write_sidecar(tmp_path / "e", sidecar_of([], [], []))
    assert shown_of(tmp_path / "e").endswith("e: a task's share without documents")
    write_dataset(tmp_path / "d", random_documents(2, 5))
    with pytest.raises(DataError, match=r"document 5 does not exist in .*d: it has documents 0 to 4"):
        shown_of(tmp_path / "d", Shown(document=5))


def test_a_bar_is_exact_to_an_eighth() -> None:
    assert bar(1, 4) == "████"
    assert bar(0.5, 4) == "██"
    assert bar(0.53125, 4) == "██▏"
    assert bar(0.00001, 4) == "▏"
    assert bar(0, 4) == ""


def test_ids_as_text(toy_tokenizer: SentencePieceTokenizer) -> None:
    context = context_id(toy_tokenizer)
    assert token_text(toy_tokenizer, toy_tokenizer.eod_id, context) == END_OF_DOCUMENT
    assert token_text(toy_tokenizer, toy_tokenizer.vocab_size, context) == "(beyond the vocabulary)"
    texts = [token_text(toy_tokenizer, token_id, context) for token_id in range(toy_tokenizer.vocab_size)]
    assert "(part of a character)" in texts, "a byte of a longer character"
    assert any(text.startswith("␣") and len(text) > 1 for text in texts), "a word with its blank"
    assert visible("a b\n\t\x00\u3000\udcff中") == "a␣b⏎⇥\\u0000␣(wide)\\udcff中"


def test_the_commands(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer, capsys: pytest.CaptureFixture) -> None:
    documents = random_documents(3, 300)
    for number in range(3):
        write_dataset(tmp_path / f"d.task-{number}-of-3", documents[100 * number : 100 * number + 100])
    merge = [str(tmp_path / "m"), str(tmp_path / "d.task-*-of-3"), "--verify", "--workers", "2"]
    assert run_tool(VERBS["merge"], merge) == 0
    shown = capsys.readouterr().out
    assert "joined         3 datasets, by " in shown
    assert "verified       the hashes of 3 shards, read from the new file" in shown
    assert run_tool(VERBS["merge"], merge) == 2
    assert "m.bin exists; choose another output" in capsys.readouterr().err
    assert run_tool(VERBS["merge"], [*merge, "--overwrite"]) == 0
    split = [str(tmp_path / "m"), "--output", str(tmp_path / "s"), "--train", "0.8", "--valid", "0.2", "--test", "0"]
    assert run_tool(VERBS["split"], split) == 0
    assert run_tool(VERBS["split"], [*split, "--seed", "1"]) == 2
    before = (tmp_path / "s-valid.bin").read_bytes()
    assert run_tool(VERBS["split"], [*split, "--seed", "1", "--overwrite"]) == 0
    assert (tmp_path / "s-valid.bin").read_bytes() != before
    capsys.readouterr()
    assert run_tool(VERBS["inspect"], [str(tmp_path / "s-train"), "--verify", "--samples", "1", "--top", "4"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("verified       3 shards have their hash; ids and document ends are right")
    assert len(re.findall(r"^document \d+,", shown, re.MULTILINE)) == 1
    assert len(re.findall(r"^ +\d+ +\d+ +[\d.]+%  [█▏▎▍▌▋▊▉]+$", shown, re.MULTILINE)) == 4
    content = bytearray((tmp_path / "s-train.bin").read_bytes())
    content[50] ^= 1
    (tmp_path / "s-train.bin").write_bytes(content)
    assert run_tool(VERBS["inspect"], [str(tmp_path / "s-train"), "--verify"]) == 2
    assert "shard 0 of 3 does not have its hash: bytes 0 to" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_tool(VERBS["inspect"], [str(tmp_path / "s-train"), "--samples", "-1"])
    assert "-1 must be at least 0" in capsys.readouterr().err
