"""The Chinese recipe: what it keeps and removes, that it goes on where it stopped, and what it refuses."""

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from datatrove.data import Document

from megagpt.data.chinese_steps import Characters, ChineseSignature
from megagpt.data.chinese_text import normalize
from megagpt.data.cli_clean import VERBS
from megagpt.data.indexed import IndexedDataset
from megagpt.data.recipe_chinese import Stage
from megagpt.data.recipe_plan import held
from megagpt.data.recipe_run import run_here
from megagpt.data.tool import run_tool
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.chinese_corpus import NUM_GOOD, RUBBISH, Planted, edited, good_text, write_corpus


class Place:
    """A folder with the corpus, and the command run in it."""

    def __init__(self, folder: Path, tokenizer: SentencePieceTokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.planted: Planted = write_corpus(folder)

    def clean(self, *options: str, output: str = "data", inputs: tuple[str, ...] = ("a.jsonl", "b.jsonl")) -> int:
        paths = [str(self.folder / name) for name in inputs]
        command = [*paths, "--output", str(self.folder / output), "--tokenizer", self.tokenizer.path, *options]
        return run_tool(VERBS["clean-chinese"], command)

    def report(self, output: str = "data") -> dict:
        return json.loads((self.folder / f"{output}.cleaning.json").read_text(encoding="utf-8"))

    def texts(self, output: str = "data") -> list[str]:
        dataset = IndexedDataset(self.folder / output)
        return [self.tokenizer.decode(dataset.document(number)) for number in range(dataset.num_documents)]

    def dataset(self, output: str = "data") -> list[bytes]:
        return [(self.folder / f"{output}.{kind}").read_bytes() for kind in ("bin", "idx", "json")]


@pytest.fixture
def place(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> Place:
    return Place(tmp_path, toy_tokenizer)


def jsonl_zst(folder: Path) -> list[dict]:
    rows = []
    for path in sorted(folder.iterdir()):
        with zstandard.open(path, "rt", encoding="utf-8") as stream:
            rows += [json.loads(line) for line in stream]
    return rows


def test_duplicates_and_rubbish_go_and_good_text_stays(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.clean("--tasks", "3", "--keep-removed", "--text-output", str(place.folder / "text")) == 0
    report = place.report()
    assert report["removed"] == dict.fromkeys(sorted(RUBBISH), 1)
    duplicates = report["exact_duplicates"], report["near_duplicates"]
    assert duplicates == (place.planted.num_exact, place.planted.num_near)
    assert (report["num_read"], report["num_documents"]) == (NUM_GOOD + sum(duplicates) + len(RUBBISH), NUM_GOOD)

    texts = place.texts()
    assert {normalize(text) for text in texts} == set(texts)
    rebuilt = {text for text in place.planted.good if text in texts}
    assert len(rebuilt) >= NUM_GOOD - place.planted.num_near - place.planted.num_exact
    written = jsonl_zst(place.folder / "text")
    assert [row["text"] for row in written] == texts
    assert report["num_characters"] == sum(map(len, texts))
    assert report["num_tokens"] == IndexedDataset(place.folder / "data").num_tokens
    removed = jsonl_zst(place.folder / "data.cleaning" / "removed" / "rules")
    assert {row["metadata"]["filter_reason"] for row in removed} == set(RUBBISH)
    left = sorted(path.name for path in place.folder.iterdir() if path.name.startswith("data"))
    assert left == ["data.bin", "data.cleaning", "data.cleaning.json", "data.idx", "data.json"]
    assert sorted(path.name for path in (place.folder / "data.cleaning").iterdir()) == [
        "lock",
        "logs",
        "plan.json",
        "removed",
    ]
    printed = capsys.readouterr()
    assert "near                  -" in printed.out
    assert printed.err == ""


def test_every_other_version_of_a_text_that_was_removed_is_still_there(place: Place) -> None:
    place.clean("--tasks", "2")
    letters = [{*zip(text, text[1:], text[2:], strict=False)} for text in place.texts()]
    for text in place.planted.good:
        runs = {*zip(text, text[1:], text[2:], strict=False)}
        assert sum(len(runs & other) > 0.8 * len(runs) for other in letters) == 1, text


def test_the_result_depends_on_tasks_but_not_on_processes(place: Place) -> None:
    assert place.clean("--tasks", "3", output="one") == 0
    assert place.clean("--tasks", "3", "--workers", "2", output="two") == 0
    assert place.dataset("one") == place.dataset("two")
    assert place.report("one") == place.report("two")


def test_a_run_goes_on_where_a_bad_line_stopped_it(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.clean("--tasks", "4", output="whole")
    lines = (place.folder / "b.jsonl").read_bytes().splitlines(keepends=True)
    bad = b"{" + lines[-1][1:].replace(b"{", b" ").replace(b'"text"', b'"test"')
    stamp = (place.folder / "b.jsonl").stat()
    (place.folder / "b.jsonl").write_bytes(b"".join([*lines[:-1], bad]))
    os.utime(place.folder / "b.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    capsys.readouterr()
    assert place.clean("--tasks", "4") == 2
    assert f"b.jsonl:{len(lines)}: there is no key 'text'" in capsys.readouterr().err
    done = [path.name for path in (place.folder / "data.cleaning/logs/clean/completions").iterdir()]
    assert sorted(done) == ["00000", "00001", "00002"]
    (place.folder / "b.jsonl").write_bytes(b"".join(lines))
    os.utime(place.folder / "b.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert place.clean() == 0  # tasks as it was begun with
    assert place.dataset() == place.dataset("whole")
    assert place.report() == place.report("whole")


def test_a_finished_cleaning_does_nothing_again(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.clean()
    before = (place.folder / "data.idx").stat().st_mtime_ns
    first = capsys.readouterr().out
    assert place.clean() == 0
    assert (place.folder / "data.idx").stat().st_mtime_ns == before
    again = capsys.readouterr().out
    assert again.count("done before") == 8
    assert again.splitlines()[8:] == first.splitlines()[8:]


CHANGES = [
    (["--min-characters", "30"], "begun with min characters 20, which is now 30"),
    (["--min-han", "0.5"], "begun with min han 0.3, which is now 0.5"),
    (["--form", "NFKC"], "begun with form NFC, which is now NFKC"),
    (["--tasks", "2"], "begun with tasks 1, which is now 2"),
    (["--text-key", "body"], "begun with text key text, which is now body"),
]


@pytest.mark.parametrize(("options", "message"), CHANGES, ids=[options[0] for options, _ in CHANGES])
def test_other_options_are_refused_and_restart_takes_them(
    place: Place, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    place.clean()
    assert place.clean(*options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--restart" in error


def test_a_run_that_met_a_bad_line_goes_on_without_it_where_asked(place: Place) -> None:
    with open(place.folder / "b.jsonl", "a", encoding="utf-8") as stream:
        stream.write("no JSON\n")
    assert place.clean("--tasks", "3") == 2
    assert place.clean("--on-error", "skip") == 0
    assert place.report()["unreadable"] == {"not JSON": 1}
    assert place.clean("--on-error", "raise") == 2


def test_other_inputs_are_refused_and_restart_takes_them(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.clean(inputs=("a.jsonl",))
    assert place.clean() == 2
    assert "begun with other inputs" in capsys.readouterr().err
    before = place.report()["num_read"]
    assert place.clean("--restart", "--tasks", "2") == 0
    assert place.report()["num_read"] > before


def test_restart_leaves_nothing_of_the_run_before(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    texts = str(place.folder / "text")
    place.clean("--tasks", "4", "--text-output", texts)
    (place.folder / "data.task-00003-of-00004.idx").touch()  # as a run that was stopped would leave it
    assert place.clean("--restart", "--tasks", "1", "--text-output", texts) == 2
    assert "text of --text-output is not empty" in capsys.readouterr().err
    assert place.clean("--restart", "--tasks", "1") == 0
    assert list(place.folder.glob("*.task-*")) == []


def test_a_dataset_of_another_origin_is_not_replaced(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.folder / "data.idx").touch()
    assert place.clean() == 2
    assert "data.idx exists; choose another output, or replace it with --restart" in capsys.readouterr().err
    assert place.clean("--restart") == 0


def test_a_folder_of_something_else_is_left_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--restart"]):
        assert place.clean(*options, "--work", str(place.folder)) == 2
    assert "is not the work folder of a cleaning" in capsys.readouterr().err
    assert (place.folder / "a.jsonl").exists()


def test_two_processes_do_not_clean_in_one_folder(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.clean()
    with held(place.folder / "data.cleaning"):
        assert place.clean() == 2
        assert place.clean("--restart") == 2
    assert (place.folder / "data.cleaning" / "plan.json").exists()
    assert "another process is cleaning in" in capsys.readouterr().err


def test_bad_words_are_left_out(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = place.folder / "words.txt"
    words.write_text("\ufeff" + place.planted.good[0][5:9].replace("\n", "") + "\n\n", encoding="utf-8")
    assert place.clean("--bad-words", str(words)) == 0
    assert place.report()["removed"]["bad words"] == 1
    words.write_text("\n", encoding="utf-8")
    assert place.clean("--bad-words", str(words), output="other") == 2
    assert "words.txt has no word" in capsys.readouterr().err
    assert place.clean("--bad-words", "missing.txt", output="other") == 2
    assert "cannot read the bad words in missing.txt" in capsys.readouterr().err


def test_lines_that_cannot_be_read_are_counted(place: Place) -> None:
    with open(place.folder / "a.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"text": null}\nno JSON\n{"text": ""}\n')
    assert place.clean("--on-error", "skip") == 0
    assert place.report()["unreadable"] == {"'text' is not text": 1, "empty text": 1, "not JSON": 1}
    assert place.report()["num_documents"] == NUM_GOOD


def test_where_nothing_is_left_the_error_says_what_became_of_it(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.clean("--min-characters", "5000", "--tasks", "2") == 2
    error = capsys.readouterr().err
    assert "no document is left" in error
    assert "too short" in error


def test_traditional_becomes_simplified_where_asked(place: Place) -> None:
    text = "臺灣的氣候濕熱，夏季常有颱風，冬季則溫和少雨，適合種植水稻與甘蔗。"
    (place.folder / "a.jsonl").write_text(json.dumps({"text": text}), encoding="utf-8")
    place.clean(inputs=("a.jsonl",))
    assert place.texts() == [text]
    place.clean("--simplified", inputs=("a.jsonl",), output="simplified")
    assert place.texts("simplified") == ["台湾的气候湿热，夏季常有台风，冬季则温和少雨，适合种植水稻与甘蔗。"]


def test_without_opencc_the_error_says_how_to_install_it(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    assert place.clean("--simplified") == 2
    assert "pip install opencc" in capsys.readouterr().err


SBATCH = """#!/usr/bin/env bash
cd "$(dirname "$0")"
echo "$*" >> submitted
echo "Submitted batch job $(wc -l < submitted)"
"""


def test_on_slurm_each_stage_waits_for_the_one_before(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.folder / "bin").mkdir()
    (place.folder / "bin" / "sbatch").write_text(SBATCH)
    (place.folder / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place.folder / 'bin'}:{os.environ['PATH']}")
    slurm = ("--slurm-partition", "main", "--slurm-time", "1:00:00", "--slurm-memory", "3")
    assert place.clean(*slurm) == 2
    assert "--slurm-partition needs --tasks" in capsys.readouterr().err
    assert place.clean(*slurm, "--tasks", "5", "--slurm-option", "account=mine") == 0
    printed = capsys.readouterr().out.splitlines()
    # datatrove submits a job for each stage, and one that adds up its statistics
    assert [line.split()[-1] for line in printed[:8]] == [str(number) for number in range(1, 17, 2)]
    submitted = (place.folder / "bin" / "submitted").read_text().splitlines()
    assert [line for line in submitted if "--dependency=afterok:1 " in line] == [submitted[2]]
    script = (place.folder / "data.cleaning" / "logs" / "clean" / "launch_script.slurm").read_text()
    for option in ("partition=main", "time=1:00:00", "mem-per-cpu=3G", "account=mine", "array=0-4"):
        assert f"#SBATCH --{option}" in script
    assert "#SBATCH --kill-on-invalid-dep=yes" in script
    assert f"source {sys.prefix}/bin/activate" in script
    assert "qos" not in script


def test_an_option_of_sbatch_has_a_name_and_a_value(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        place.clean("--slurm-option", "exclusive")
    assert "exclusive must be NAME=VALUE" in capsys.readouterr().err


class KillsItself:
    """A step whose process dies in task 1."""

    def __call__(self, data: None, rank: int, world_size: int) -> Iterator[Document]:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from ()


@pytest.mark.parametrize("name", ["plan.json", "data.cleaning.json"])
def test_a_full_disk(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replace = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert place.clean() == 2
    assert f"{name}: No space left on device; free space on its disk" in capsys.readouterr().err
    assert not list(place.folder.rglob(f"{name}*"))
    assert place.clean() == 0


def test_a_process_that_is_killed_is_an_error_and_not_an_endless_wait(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a process was killed.*of 4 tasks are not done: run the same command again"):
        run_here(tmp_path, [Stage("a", "a", 4, [KillsItself()])], workers=2, on_stage=print)


def test_near_duplicates_in_chinese_have_like_signatures(tmp_path: Path) -> None:
    signatures = ChineseSignature(str(tmp_path))

    def bands_in_common(left: str, right: str) -> int:
        rows = [signatures.get_signature(signatures.get_shingles(text)) for text in (left, right)]
        return sum(a == b for a, b in zip(*rows, strict=True))

    text = "".join(good_text(seed) for seed in range(5))
    assert bands_in_common(text, text.replace("，", " ").replace("\n", "")) == 14  # spaces and punctuation are nothing
    assert bands_in_common(text, edited(text, 1)) > 0
    assert bands_in_common(text, good_text(9)) == 0
    assert Characters().word_tokenize("用pytorch2写 3.5 行，𠀀ー") == list("用") + ["pytorch2"] + list("写35行𠀀ー")


def test_signatures_of_long_documents_are_those_of_datatrove(tmp_path: Path) -> None:
    from datatrove.pipeline.dedup import MinhashDedupSignature

    signatures = ChineseSignature(str(tmp_path))
    shingles = signatures.get_shingles("".join(good_text(seed) for seed in range(60)))
    assert len(shingles) > 2 * 4096
    assert signatures.get_signature(shingles) == MinhashDedupSignature.get_signature(signatures, shingles)
