"""What the report says of a run is what its samples are."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from megagpt.data.blend import BlendedSamples
from megagpt.data.blend_history import CorpusShare, Phase
from megagpt.data.builder import build_dataset
from megagpt.data.cli import VERBS
from megagpt.data.report_blend import run_facts
from megagpt.data.report_run import corpus_epochs, run_section
from megagpt.data.run_samples import open_run_samples
from megagpt.data.samples import SampleIndex
from megagpt.data.tool import run_tool
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.datasets import numbered_dataset
from tests.unit.tokenizer.toy import toy_texts

A, B, C = (CorpusShare(name, f"{name}-print", weight) for name, weight in (("a", 3.0), ("b", 1.5), ("c", 2.0)))


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, SampleIndex]:
    return {
        f"{name}-print": SampleIndex(numbered_dataset(tmp_path / name, lengths), "train", (1.0, 0.0, 0.0), 4, seed=1)
        for name, lengths in (("a", [9, 4, 12]), ("b", [31, 5]), ("c", [6] * 7))
    }


CONFIG = """
[model]
num_layers = 1
num_heads = 1
hidden_size = 8
sequence_length = 16
[tokenizer]
path = "{folder}/tokenizer.model"
[data]
corpora = [{{path = "{folder}/x", weight = 3, name = "three"}}, {{path = "{folder}/y", split = [1.0, 0.0, 0.0]}}]
split = [0.9, 0.1, 0.0]
[train]
steps = 10
batch_tokens = 128
"""


@pytest.fixture
def run(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> Path:
    """A configuration of two corpora, 80 samples."""
    shutil.copy(toy_tokenizer.path, tmp_path / "tokenizer.model")
    for name, seed in (("x", 1), ("y", 2)):
        lines = [json.dumps({"text": text}) + "\n" for text in toy_texts(50, seed=seed)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        build_dataset([str(tmp_path / f"{name}.jsonl")], tmp_path / name, toy_tokenizer)
    path = tmp_path / "small.toml"
    path.write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    return path


def test_the_command_shows_the_run(run: Path, capsys: pytest.CaptureFixture) -> None:
    output = run.parent / "report.html"
    assert run_tool(VERBS["report"], ["--run", str(run), "--output", str(output)]) == 0
    page = output.read_text(encoding="utf-8")
    for part in (
        "Over the training run: small",
        "1,280 tokens in 10 steps",
        "80 samples of 16 tokens",
        "three, 0 to 1,280 tokens: 75.0 %",
        "Corpus report: 2 datasets",
        "Decoded documents",
    ):
        assert part in page, part
    epochs = 60 / open_run_samples(str(run)).corpora[0].samples("train", 16, 0).samples_per_epoch
    assert f"three: {epochs:.2f} epochs at the end" in page
    assert run_tool(VERBS["report"], ["--output", str(output)]) == 2
    assert "nothing to report on: name datasets, or a run with --run" in capsys.readouterr().err
    assert run_tool(VERBS["report"], ["--run", "gpt3-base", "--output", str(output)]) == 2
    assert "gpt3-base names no tokenizer.path or no data.path" in capsys.readouterr().err


def test_a_configuration_is_read_without_torch(run: Path) -> None:
    program = (
        "import sys\nfrom megagpt.data.report import write_report\n"
        "write_report([], sys.argv[2], None, sys.argv[1])\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(run), str(run.parent / "r.html")], check=True)


def test_phases_are_counted_as_the_samples_are(corpora: dict[str, SampleIndex]) -> None:
    phases = (Phase(0, (A, B)), Phase(10, (C, A)), Phase(31, (B,)), Phase(400, (A,)))
    blend = BlendedSamples(phases, corpora)
    facts = run_facts("run", 5, 45, blend)
    assert [corpus.name for corpus in facts.corpora] == ["a", "b", "c"]
    assert [phase.end_sample for phase in facts.phases] == [10, 31, 45], "the last phase begins after the run"
    start = 0
    for phase in facts.phases:
        owners = Counter(blend.place_of(sample)[0].name for sample in range(start, phase.end_sample))
        assert phase.samples == (owners["a"], owners["b"], owners["c"])
        start = phase.end_sample
    assert facts.num_samples == 45
    reads = [sum(phase.samples[number] for phase in facts.phases) for number in range(3)]
    sizes = [corpora[f"{name}-print"].samples_per_epoch for name in "abc"]
    assert corpus_epochs(facts) == [read / size for read, size in zip(reads, sizes, strict=True)]


def test_a_corpus_that_is_read_no_more_has_unknown_epochs(corpora: dict[str, SampleIndex]) -> None:
    renamed = CorpusShare("a, cleaned name", A.fingerprint, 1.0)
    phases = (Phase(0, (A, B)), Phase(10, (renamed,)))
    facts = run_facts("run", 2, 20, BlendedSamples(phases, {A.fingerprint: corpora[A.fingerprint]}))
    assert [corpus.name for corpus in facts.corpora] == ["a, cleaned name", "b"]
    assert facts.corpora[1].samples_per_epoch is None
    page = run_section(facts)
    assert "not known" in page
    assert "b not known" in page, "the chart's sentence says so too"
    assert page.count("<polyline") == 1
