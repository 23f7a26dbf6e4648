"""benchmarks/corpus.py: what it computes from measurements, how it measures, what it gives the programs it compares."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from corpus_peers import compare, inputs, results, sentencepiece_loop, to_huggingface
from corpus_peers.bench import in_words
from corpus_peers.cases import ARITHMETIC, BUILDER, FORMAT, LIMIT, PAIR, START, Case
from corpus_peers.contenders import OURS, Corpus
from corpus_peers.process import CommandFailed, Run, run

from megagpt.data.builder import build_dataset
from megagpt.tokenizer import load_tokenizer
from tests.unit.tokenizer.toy import toy_texts, train_toy

CORPUS = Corpus("base", Path("base.jsonl"), 100_000_000, {})
TEXTS = [*toy_texts(40), "天地玄黄  not in the vocabulary: 龘😀\t", "曹操" * 300]


def measured(
    kind: str, name: str, workers: int, seconds: list[float], against: str | None = None
) -> list[results.Measured]:
    """Runs of one case that took so long."""
    case = Case(kind, name, workers, CORPUS, lambda output: pytest.fail("not run"), against)
    return [
        results.Measured(case, number, Run(each, each, 150.0, 1), 50_000_000) for number, each in enumerate(seconds)
    ]


def table(*groups: list[results.Measured]) -> Mapping[tuple[str, int], results.Row]:
    """Rows by name and workers."""
    found = results.rows([one for group in groups for one in group], {})
    return {(row.name, row.workers): row for row in found if row.kind != START}


def test_a_row_is_the_median_and_compares_with_ours_of_as_many_workers() -> None:
    found = table(
        measured(START, OURS, 2, [0.25]),
        measured(START, "megatron", 2, [6.0]),
        measured(BUILDER, OURS, 1, [1.0, 1.5, 5.0], OURS),
        measured(BUILDER, OURS, 2, [0.75], OURS),
        measured(BUILDER, "megatron", 2, [17.0, 15.0, 16.0], OURS),
    )
    ours, megatron = found[OURS, 1], found["megatron", 2]
    assert (ours.seconds, ours.seconds_min, ours.seconds_max, ours.rounds) == (1.5, 1.0, 5.0, 3)
    assert ours.mb_per_second == pytest.approx(100 / 1.5)
    assert megatron.ratio == pytest.approx(16 / 0.75)
    assert megatron.second_ratio == pytest.approx((16 - 6) / (0.75 - 0.25))


def test_a_compressed_input_compares_with_its_decompression_and_with_our_plain_build() -> None:
    found = table(
        measured(BUILDER, OURS, 2, [0.5], OURS),
        measured(FORMAT, "gz: decompression alone", 1, [0.4]),
        measured(FORMAT, "megagpt on gz", 2, [0.6], "gz: decompression alone"),
    )
    assert found["megagpt on gz", 2].ratio == pytest.approx(1.5)
    assert found["megagpt on gz", 2].second_ratio == pytest.approx(1.2)


def test_goals_say_what_is_met_and_what_is_not() -> None:
    runs = [
        *measured(BUILDER, OURS, 1, [1.0], OURS),
        *measured(BUILDER, OURS, 2, [0.625], OURS),
        *measured(BUILDER, "megatron", 2, [12.5], OURS),
        *measured(BUILDER, "loop", 2, [3.0], OURS),
        *measured(LIMIT, PAIR, 2, [0.5]),
        *measured(LIMIT, ARITHMETIC, 1, [1.0]),
        *measured(LIMIT, ARITHMETIC, 2, [1.25]),
        *measured(FORMAT, "gz", 1, [1.0]),
        *measured(FORMAT, "megagpt on gz", 2, [1.25], "gz"),
    ]
    rows = results.rows(runs, {})
    goals = {goal.goal: (goal.measured, goal.met) for goal in results.goals(rows, {"base": "100 MB"})}
    assert goals == {
        "100 MB, workers: 1: under 200 MB of memory": ("150 MB", True),
        "100 MB, workers: 2: under 200 MB of memory": ("150 MB", True),
        "100 MB, workers: 2: 20 times as fast as megatron": ("20.0 times", True),
        "100 MB, workers: 2: 5 times as fast as loop": ("4.8 times", False),
        "100 MB: scaling efficiency of 90 % from one worker to two": (
            "80.0% (two builds that share nothing: 100%; the machine's own, arithmetic alone: 80%)",
            False,
        ),
        "100 MB, megagpt on gz: within 1.3 times its decompression alone": ("1.25 times (CPU floor: 0.81)", True),
        "100 MB, megagpt on gz: under 200 MB of memory": ("150 MB", True),
    }
    text = "\n".join(results.markdown(rows, results.goals(rows, {"base": "100 MB"}), {"base": "100 MB"}))
    assert "| megatron | 2 | 12.500 (12.500–12.500) | 8.0 | 12.50 | 150 (1) | 50.0 | 20.00 |  |  |" in text


def test_memory_of_processes_that_run_at_once_is_added_up(tmp_path: Path) -> None:
    # In a process of its own: what a child's peak is said to be begins with the peak of the process that started it.
    script = tmp_path / "measure.py"
    script.write_text(
        """
import sys
from pathlib import Path
from corpus_peers.process import run

folder = Path(sys.argv[1])
hold = sys.executable + " -c 'import time; block = b\\"x\\" * 60_000_000; time.sleep(1.2)'"
found = run(["sh", "-c", hold + " & " + hold + " & wait"], {}, folder, folder / "log", 60)
print(found.seconds, found.cpu_seconds, found.peak_memory_mb, found.num_processes)
""",
        encoding="utf-8",
    )
    printed = subprocess.run(
        [sys.executable, script, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(results.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, cpu_seconds, peak_memory_mb, num_processes = map(float, printed.stdout.split())
    found = Run(seconds, cpu_seconds, peak_memory_mb, int(num_processes))
    assert found.num_processes == 3
    assert 120 < found.peak_memory_mb < 300
    assert 1.2 <= found.seconds < 30


def test_a_program_that_fails_or_hangs_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"ended with status 3 after .*\n.*no model"):
        run(["sh", "-c", "echo no model; exit 3"], {}, tmp_path, tmp_path / "log", 60)
    started = time.perf_counter()
    with pytest.raises(CommandFailed, match="ended with status -9"):
        run(["sleep", "60"], {"PATH": "/usr/bin:/bin"}, tmp_path, tmp_path / "log", 0.3)
    assert time.perf_counter() - started < 20


def test_pieces_join_to_the_whole_and_end_with_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(b'{"text": "%d"}\n' % number**5 for number in range(1000)))
    found = inputs.corpus("base", path, tmp_path, [1, 3])
    pieces = [file.read_bytes() for file in sorted(found.pieces[3].iterdir())]
    assert len(pieces) == 3
    assert b"".join(pieces) == path.read_bytes()
    assert all(piece.endswith(b"\n") and len(piece) > 5000 for piece in pieces)
    assert [file.read_bytes() for file in found.pieces[1].iterdir()] == [path.read_bytes()]


def test_repetitions_and_samples(tmp_path: Path) -> None:
    path, other = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b"".join(b"%06d\n" % number for number in range(100)))
    inputs.repeated(path, other, inputs.size_argument("2KB"))
    assert other.read_bytes() == path.read_bytes() * 3
    inputs.sample(path, other, 140)
    assert other.read_bytes() == b"".join(b"%06d\n" % number for number in range(0, 100, 5))
    inputs.sample(path, other, 0)
    assert other.read_bytes() == b"000000\n"
    assert (inputs.size_argument("1GB"), inputs.size_argument("1.5mb"), inputs.size_argument("77")) == (
        10**9,
        1_500_000,
        77,
    )


def test_one_long_document_has_every_text(tmp_path: Path) -> None:
    path, other = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = ["天地\n玄黄", 'a "quote"', "\\ \u0001"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    inputs.one_document(path, other)
    lines = other.read_text(encoding="utf-8").split("\n")
    assert lines[1:] == [""]
    assert json.loads(lines[0]) == {"text": "".join(f"{text}\n" for text in texts)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BPE model."""
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    train_toy(path)
    return path


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """JSONL of TEXTS."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def test_the_plain_loop_writes_what_the_builder_writes(model: Path, corpus_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("orjson")
    build_dataset([str(corpus_file)], tmp_path / "ours", load_tokenizer(model))
    sentencepiece_loop.main(str(corpus_file), str(model), str(tmp_path / "loop"), 2)
    ours, loop = ([str(tmp_path / f"{name}.{end}") for end in ("bin", "idx")] for name in ("ours", "loop"))
    assert compare.main(ours, [loop]) == {"bin_identical": True, "idx_identical": True}


def test_a_difference_is_counted_and_named(model: Path, corpus_file: Path, tmp_path: Path) -> None:
    build_dataset([str(corpus_file)], tmp_path / "ours", load_tokenizer(model))
    ours = [str(tmp_path / "ours.bin"), str(tmp_path / "ours.idx")]
    changed = np.fromfile(ours[0], np.uint16)
    changed[-2] ^= 1  # in the last document
    changed.tofile(tmp_path / "other.bin")
    found = compare.main(ours, [[str(tmp_path / "other.bin"), ours[1]]])
    last = len(TEXTS) - 1
    assert found == {
        "bin_identical": False,
        "idx_identical": True,
        "documents_differing": 1,
        "first_differing": last,
    }
    assert in_words(found) == f"no: bin identical False, documents differing 1, first differing {last}"


def test_the_converted_tokenizer_gives_the_models_ids(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")
    tokenizers = pytest.importorskip("tokenizers")
    to_huggingface.convert(str(model), tmp_path)
    converted = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(model)
    for text in TEXTS:
        assert converted.encode(text).ids == ours.encode(text)
