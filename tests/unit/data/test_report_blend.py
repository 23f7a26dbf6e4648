"""What the report says of a run is what its samples are."""

from collections import Counter
from pathlib import Path

import pytest

from megagpt.data.blend import BlendedSamples
from megagpt.data.blend_history import CorpusShare, Phase
from megagpt.data.report_blend import run_facts
from megagpt.data.report_run import corpus_epochs, run_section
from megagpt.data.samples import SampleIndex
from tests.unit.data.datasets import numbered_dataset

A, B, C = (CorpusShare(name, f"{name}-print", weight) for name, weight in (("a", 3.0), ("b", 1.5), ("c", 2.0)))


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, SampleIndex]:
    return {
        f"{name}-print": SampleIndex(numbered_dataset(tmp_path / name, lengths), "train", (1.0, 0.0, 0.0), 4, seed=1)
        for name, lengths in (("a", [9, 4, 12]), ("b", [31, 5]), ("c", [6] * 7))
    }


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
