"""Blends: each corpus's samples one after the other over all phases, none lost or repeated; what a history refuses."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megagpt.data.blend import BlendedSamples
from megagpt.data.blend_history import CorpusShare, Phase, continue_phases, phases_from_json
from megagpt.data.samples import SampleIndex
from megagpt.errors import CheckpointError, DataError
from tests.unit.data.datasets import numbered_dataset

ALL = (1.0, 0.0, 0.0)
A, B, C = (CorpusShare(name, f"{name}-print", weight) for name, weight in (("a", 3.0), ("b", 1.0), ("c", 2.0)))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SampleIndex]:
    folder = tmp_path_factory.mktemp("blend")
    sizes = {"a": [9, 4, 12], "b": [31, 5], "c": [6] * 7}
    return {
        f"{name}-print": SampleIndex(numbered_dataset(folder / name, lengths), "train", ALL, 4, seed=1)
        for name, lengths in sizes.items()
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True), st.data()),
        min_size=1,
        max_size=4,
    ),
)
def test_over_all_phases_no_sample_is_lost_or_repeated(corpora: dict[str, SampleIndex], parts: list) -> None:
    phases: tuple[Phase, ...] = ()
    first = 0
    ends = []
    for size, names, data in parts:
        shares = tuple(CorpusShare(name, f"{name}-print", float(data.draw(st.integers(1, 9)))) for name in names)
        phases = continue_phases(phases, first, shares, may_change=True)
        first += size
        ends.append(first)
    blend = BlendedSamples(phases, corpora)
    seen: dict[str, list[int]] = {name: [] for name in "abc"}
    tokens = blend.tokens_of_many(range(first))
    for sample in range(first):
        corpus, number = blend.place_of(sample)
        seen[corpus.name].append(number)
        assert tokens[sample].tolist() == corpora[corpus.fingerprint].tokens_of(number).tolist()
    for name, numbers in seen.items():
        assert numbers == list(range(len(numbers))), name
    for phase, end in zip(phases, [*(phase.first_sample for phase in phases[1:]), first], strict=True):
        owners = [blend.place_of(sample)[0].name for sample in range(phase.first_sample, end)]
        for size in range(len(owners) + 1):
            for name, share in phase.shares.items():
                assert abs(owners[:size].count(name) - share * size) < 1 + 1e-9
    assert {use.name: use.num_samples for use in blend.uses(first)} == {
        corpus.name: len(seen[corpus.name]) for corpus in phases[-1].corpora
    }


def test_a_run_of_one_corpus_reads_it_as_it_is(corpora: dict[str, SampleIndex]) -> None:
    blend = BlendedSamples((Phase(0, (A,)),), corpora)
    expected = corpora[A.fingerprint].tokens_of_many(range(50))
    assert np.array_equal(blend.tokens_of_many(range(50)), expected)
    (use,) = blend.uses(9)
    assert (use.name, use.num_samples, use.samples_per_epoch, use.epochs) == ("a", 9, 6, 1.5)


def test_samples_of_a_corpus_that_is_not_named_any_more(corpora: dict[str, SampleIndex]) -> None:
    phases = (Phase(0, (A, B)), Phase(10, (A, C)))
    blend = BlendedSamples(phases, {name: corpora[name] for name in ("a-print", "c-print")})
    assert blend.place_of(3)[0] == B
    assert blend.tokens_of_many([0, 10, 11]).shape == (3, 5)
    with pytest.raises(DataError, match=r"from the corpus b, which the run read before and .* does not name; list it"):
        blend.tokens_of_many([3])
    taken = [blend.place_of(sample) for sample in range(10)]
    first_new = next(blend.place_of(sample) for sample in range(10, 20) if blend.place_of(sample)[0] == A)
    assert first_new[1] == sum(corpus == A for corpus, _ in taken)


def test_a_run_that_continues() -> None:
    first = continue_phases((), 0, (A, B), may_change=True)
    assert first == (Phase(0, (A, B)),)
    assert first[0].shares == {"a": 0.75, "b": 0.25}
    assert first[0].describe() == "a 75 %, b 25 %"
    assert continue_phases(first, 100, (A, B), may_change=True) == first
    doubled = (replace(A, weight=6.0), replace(B, weight=2.0))
    assert continue_phases(first, 100, doubled, may_change=True) == (Phase(0, doubled),), "the same shares"
    second = continue_phases(first, 100, (A, C), may_change=True)
    assert second == (Phase(0, (A, B)), Phase(100, (A, C)))
    assert continue_phases(second, 150, (A, B), may_change=True) == (*second, Phase(150, (A, B)))
    undone = continue_phases(second, 100, (B, C), may_change=True)
    assert undone == (Phase(0, (A, B)), Phase(100, (B, C))), "what came after the checkpoint was undone"
    assert continue_phases(second, 60, (A, B), may_change=True) == first
    moved = replace(A, name="elsewhere")
    assert continue_phases(first, 100, (moved, B), may_change=True) == (Phase(0, (moved, B)),)


def test_a_history_comes_back_from_json() -> None:
    phases = (Phase(0, (A, B)), Phase(100, (C,)))
    assert phases_from_json([asdict(phase) for phase in phases]) == phases
    for broken in ([{"first_sample": 0}], [{"first_sample": 0, "corpora": [{"title": "a"}]}], [3]):
        with pytest.raises((TypeError, KeyError)):
            phases_from_json(broken)


def test_a_corpus_that_has_changed_is_refused() -> None:
    history = (Phase(0, (A, B)),)
    changed = replace(A, fingerprint="other")
    message = r"the documents of the corpus a or its split have changed since .* give it another data.corpora name"
    for may_change in (True, False):
        with pytest.raises(CheckpointError, match=message):
            continue_phases(history, 10, (changed, B), may_change)
    assert len(continue_phases(history, 10, (replace(changed, name="a2"), B), may_change=True)) == 2


def test_a_run_of_data_path_stays_with_its_corpus() -> None:
    history = (Phase(0, (A,)),)
    assert continue_phases(history, 10, (A,), may_change=False) == history
    message = r"it was trained on a 100 %; to go on with other corpora, list them in data.corpora"
    with pytest.raises(CheckpointError, match=message):
        continue_phases(history, 10, (B,), may_change=False)
    with pytest.raises(CheckpointError, match=r"trained on a 75 %, b 25 %"):
        continue_phases((Phase(0, (A, B)),), 10, (A,), may_change=False)
