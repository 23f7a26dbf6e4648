"""What a run was fed over its life: phases, each from a sample on, with corpora and weights. Pure; knows no files.

A run begins with one phase. Where it continues with other corpora or weights, a phase begins at the sample it has come
to; each corpus goes on with its own next sample, in every phase. A corpus is known by its fingerprint (its documents
and their split): its name and place may change, but a name that now means other documents is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megagpt.data.blend_order import whole_weights
from megagpt.errors import CheckpointError


@dataclass(frozen=True)
class CorpusShare:
    """A corpus of a phase. `weight` is relative to those of the others."""

    name: str
    fingerprint: str
    weight: float


@dataclass(frozen=True)
class Phase:
    """From sample `first_sample` of the run on, these corpora."""

    first_sample: int
    corpora: tuple[CorpusShare, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the samples by name of the corpus; they sum to 1."""
        total = sum(corpus.weight for corpus in self.corpora)
        return {corpus.name: corpus.weight / total for corpus in self.corpora}

    def describe(self) -> str:
        """`wiki 75 %, books 25 %`."""
        return ", ".join(f"{name} {100 * share:.4g} %" for name, share in self.shares.items())


def phases_from_json(values: Sequence[Any]) -> tuple[Phase, ...]:
    """Phases as `dataclasses.asdict` made them. Raises TypeError or KeyError where they are something else."""
    return tuple(
        Phase(int(phase["first_sample"]), tuple(CorpusShare(**corpus) for corpus in phase["corpora"]))
        for phase in values
    )


def continue_phases(
    history: tuple[Phase, ...],
    first_sample: int,
    corpora: tuple[CorpusShare, ...],
    may_change: bool,
    may_replace: bool = False,
) -> tuple[Phase, ...]:
    """The phases of a run that goes on with `corpora` from `first_sample` on.

    What `history` says of later samples was undone. Where the last phase has the same corpora and weights it goes on,
    else one is added. Raises CheckpointError where a corpus has changed, or where the corpora or their shares differ
    and `may_change` is False. With `may_replace` neither is an error; documents that are new begin with their first
    sample.
    """
    kept = tuple(phase for phase in history if phase.first_sample < first_sample)
    problems = [] if may_replace else _changed(kept, corpora)
    if kept and not problems and not (may_change or may_replace) and not _same(kept[-1].corpora, corpora):
        problems = [f"it was trained on {kept[-1].describe()}; to go on with other corpora, list them in data.corpora"]
    if problems:
        raise CheckpointError("; ".join(problems))
    if kept and _same(kept[-1].corpora, corpora):
        return (*kept[:-1], Phase(kept[-1].first_sample, corpora))
    return (*kept, Phase(first_sample if kept else 0, corpora))


def _same(left: tuple[CorpusShare, ...], right: tuple[CorpusShare, ...]) -> bool:
    """The same corpora with the same shares in the same order, whatever they are called."""
    names = [corpus.fingerprint for corpus in left], [corpus.fingerprint for corpus in right]
    if names[0] != names[1]:
        return False
    return whole_weights([c.weight for c in left]) == whole_weights([c.weight for c in right])


def _changed(history: tuple[Phase, ...], corpora: tuple[CorpusShare, ...]) -> list[str]:
    """A message for each corpus whose name stood for other documents when it was last used."""
    last = {corpus.name: corpus.fingerprint for phase in history for corpus in phase.corpora}
    return [
        f"the documents of the corpus {corpus.name} or its split have changed since it was trained on; restore them, "
        "or give it another data.corpora name to begin it anew"
        for corpus in corpora
        if last.get(corpus.name, corpus.fingerprint) != corpus.fingerprint
    ]
