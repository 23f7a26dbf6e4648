"""The samples of a run: its corpora in the order of its phases. In: phases, samples of each corpus. Out: tokens.

Sample n of the run belongs to the phase that began last at or before n; the phase's order (blend_order.py) says whose
turn it is, and the corpus gives the next of its own samples, counted over all phases. So sample n is a pure function of
phases and n. Knows nothing of ranks, batches or configuration.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megagpt.data.blend_history import CorpusShare, Phase
from megagpt.data.blend_order import BlendOrder, Turns
from megagpt.data.samples import SampleIndex
from megagpt.errors import DataError


class CorpusUse(NamedTuple):
    """What a run reads of a corpus until some sample."""

    name: str
    num_samples: int
    samples_per_epoch: int

    @property
    def epochs(self) -> float:
        """How often it goes through the corpus's training split."""
        return self.num_samples / self.samples_per_epoch


class _OpenPhase(NamedTuple):
    phase: Phase
    order: BlendOrder
    before: dict[str, int]  # samples of each corpus in earlier phases, by fingerprint


class BlendedSamples:
    """Random access to the training samples of a run; a run of one corpus is a blend of one."""

    def __init__(self, phases: Sequence[Phase], samples: Mapping[str, SampleIndex], native: bool = True) -> None:
        """`samples`: of each corpus that can be read, by fingerprint; those of the last phase must be there."""
        assert phases[0].first_sample == 0, phases
        assert all(corpus.fingerprint in samples for corpus in phases[-1].corpora), phases[-1]
        self.phases = tuple(phases)
        self.samples = dict(samples)
        self.sequence_length = next(iter(samples.values())).sequence_length
        self._open: list[_OpenPhase] = []
        counts: dict[str, int] = {}
        for phase, after in zip(phases, [*phases[1:], None], strict=True):
            order = BlendOrder([corpus.weight for corpus in phase.corpora], native)
            self._open.append(_OpenPhase(phase, order, dict(counts)))
            if after is not None:
                taken = order.counts(after.first_sample - phase.first_sample)
                for corpus, count in zip(phase.corpora, taken.tolist(), strict=True):
                    counts[corpus.fingerprint] = counts.get(corpus.fingerprint, 0) + count

    @property
    def samples_per_epoch(self) -> int:
        """Samples of all corpora of the last phase, each gone through once."""
        return sum(self.samples[corpus.fingerprint].samples_per_epoch for corpus in self.phases[-1].corpora)

    @property
    def num_tokens(self) -> int:
        """Training tokens of all corpora of the last phase."""
        return sum(self.samples[corpus.fingerprint].num_tokens for corpus in self.phases[-1].corpora)

    def open_at(self, sample: int) -> None:
        """Make or map the index that each corpus needs for the samples from `sample` on; raises DataError."""
        opened = self._phase_at(sample)
        taken = opened.order.counts(sample - opened.phase.first_sample).tolist()
        for corpus, count in zip(opened.phase.corpora, taken, strict=True):
            samples = self._samples_of(corpus)
            number = opened.before.get(corpus.fingerprint, 0) + count
            samples.open_epoch(number // samples.samples_per_epoch)

    def place_of(self, sample: int) -> tuple[CorpusShare, int]:
        """The corpus that sample `sample` of the run is from, and its number among the corpus's own samples."""
        opened = self._phase_at(sample)
        turns = self._turns(opened, np.array([sample]))
        return opened.phase.corpora[int(turns.corpora[0])], int(turns.numbers[0])

    def tokens_of_many(self, samples: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The S+1 tokens of samples in any order, [n, S+1].

        Raises DataError where one is of an earlier phase whose corpus is not open.
        """
        numbers = np.asarray(samples, dtype=np.int64)
        assert numbers.size == 0 or numbers.min() >= 0, numbers
        tokens = np.empty((len(numbers), self.sequence_length + 1), dtype=np.int64)
        firsts = np.array([opened.phase.first_sample for opened in self._open])
        phases = np.searchsorted(firsts, numbers, side="right") - 1
        for phase in np.unique(phases).tolist():
            rows = np.flatnonzero(phases == phase)
            self._read_phase(self._open[phase], numbers[rows], rows, tokens)
        return tokens

    def uses(self, samples: int) -> list[CorpusUse]:
        """What the first `samples` samples of the run read of each corpus of the phase that goes on there."""
        opened = self._phase_at(samples)
        taken = opened.order.counts(samples - opened.phase.first_sample).tolist()
        return [
            CorpusUse(
                corpus.name,
                opened.before.get(corpus.fingerprint, 0) + count,
                self._samples_of(corpus).samples_per_epoch,
            )
            for corpus, count in zip(opened.phase.corpora, taken, strict=True)
        ]

    def _phase_at(self, sample: int) -> _OpenPhase:
        return self._open[bisect_right(self._open, sample, key=lambda opened: opened.phase.first_sample) - 1]

    def _turns(self, opened: _OpenPhase, samples: NDArray[np.int64]) -> Turns:
        """Whose samples they are, numbered over all phases."""
        turns = opened.order.turns(samples - opened.phase.first_sample)
        before = np.array([opened.before.get(corpus.fingerprint, 0) for corpus in opened.phase.corpora])
        return Turns(turns.corpora, turns.numbers + before[turns.corpora])

    def _read_phase(
        self, opened: _OpenPhase, samples: NDArray[np.int64], rows: NDArray[np.int64], tokens: NDArray[np.int64]
    ) -> None:
        turns = self._turns(opened, samples)
        for number in np.unique(turns.corpora).tolist():
            own = turns.corpora == number
            self._samples_of(opened.phase.corpora[number]).read(turns.numbers[own], rows[own], tokens)

    def _samples_of(self, corpus: CorpusShare) -> SampleIndex:
        found = self.samples.get(corpus.fingerprint)
        if found is None:
            raise DataError(
                f"these samples are from the corpus {corpus.name}, which the run read before and this configuration "
                "does not name; list it in data.corpora to see them"
            )
        return found
