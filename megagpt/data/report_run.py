"""The report's part on a training run: what it reads of each corpus, and when. In: counts. Out: HTML. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from megagpt.data.report_charts import Chart, Line, Shape, Tick, bar, draw, legend, nice_ticks
from megagpt.data.report_words import percent, round_number, short, text


class RunCorpus(NamedTuple):
    """A corpus of the run; `samples_per_epoch` of its training split, None where it is not known."""

    name: str
    samples_per_epoch: int | None


class RunPhase(NamedTuple):
    """A stretch of the run with the same weights: samples read before its end, and of each corpus within it."""

    end_sample: int
    samples: tuple[int, ...]


@dataclass(frozen=True)
class RunFacts:
    """What a run reads. `sequence_length`: tokens a sample; phases follow one another and are not empty."""

    name: str
    num_steps: int
    sequence_length: int
    corpora: tuple[RunCorpus, ...]
    phases: tuple[RunPhase, ...]

    @property
    def num_samples(self) -> int:
        """Samples of the whole run."""
        return self.phases[-1].end_sample


def run_section(facts: RunFacts) -> str:
    """The blend over the run (where there is more than one corpus), and how often each corpus is read."""
    tokens = facts.num_samples * facts.sequence_length
    names = [(number, corpus.name) for number, corpus in enumerate(facts.corpora)]
    parts = [
        f"<h2>Over the training run: {text(facts.name)}</h2>",
        f'<div class="card"><h3>{short(tokens)} tokens in {facts.num_steps:,} steps</h3>'
        f'<p class="note num">{facts.num_samples:,} samples of {facts.sequence_length:,} tokens; validation and test '
        "documents are not read.</p>",
        _totals(facts),
        "</div>",
    ]
    if len(facts.corpora) > 1:
        parts.append(
            '<div class="card"><h3>What the batches are made of</h3>'
            '<p class="note">Share of each corpus in the samples read at that point of the run.</p>'
        )
        parts += [draw(_blend_chart(facts)), legend(names), "</div>"]
    parts.append(
        '<div class="card"><h3>How often each corpus is read</h3><p class="note">Epochs: passes through the training '
        "documents of the corpus so far.</p>"
    )
    parts += [draw(_epoch_chart(facts)), legend(names), "</div>"]
    return "".join(parts)


def corpus_epochs(facts: RunFacts) -> list[float | None]:
    """Passes through each corpus at the end of the run; None where it is not known what an epoch is."""
    return [
        _read(facts, number) / corpus.samples_per_epoch if corpus.samples_per_epoch else None
        for number, corpus in enumerate(facts.corpora)
    ]


def _read(facts: RunFacts, corpus: int) -> int:
    return sum(phase.samples[corpus] for phase in facts.phases)


def _totals(facts: RunFacts) -> str:
    cells = [f'<div class="th">{name}</div>' for name in ("corpus", "tokens read", "epochs", "tokens of an epoch")]
    for number, (corpus, epochs) in enumerate(zip(facts.corpora, corpus_epochs(facts), strict=True)):
        read = _read(facts, number)
        share = read / facts.num_samples
        cells.append(
            f'<div class="name">{text(corpus.name)}</div>'
            f'<div class="wide"><div class="val num" data-label="tokens read">{short(read * facts.sequence_length)} '
            f"<small>{percent(share)} of the run</small></div>{bar(share, number)}</div>"
            f'<div><div class="val num" data-label="epochs">{_known(epochs)}</div></div>'
            f'<div><div class="val num" data-label="tokens of an epoch">{_epoch_tokens(facts, corpus)}</div></div>'
        )
    return f'<div class="rows">{"".join(cells)}</div>'


def _known(epochs: float | None) -> str:
    return "not known" if epochs is None else f"{epochs:,.2f}"


def _epoch_tokens(facts: RunFacts, corpus: RunCorpus) -> str:
    known = corpus.samples_per_epoch
    return "not known" if known is None else short(known * facts.sequence_length)


def _blend_chart(facts: RunFacts) -> Chart:
    shapes: list[Shape] = []
    start = 0
    for phase in facts.phases:
        length = phase.end_sample - start
        bottoms = [0, *accumulate(phase.samples)]
        for number, count in enumerate(phase.samples):
            when = f"{_tokens(facts, start)} to {_tokens(facts, phase.end_sample)} tokens"
            shapes.append(
                Shape(
                    left=start / facts.num_samples,
                    bottom=bottoms[number] / length,
                    width=length / facts.num_samples,
                    height=count / length,
                    colour=number,
                    title=f"{facts.corpora[number].name}, {when}: {percent(count / length)}",
                )
            )
        start = phase.end_sample
    ends = [phase.end_sample for phase in facts.phases[:-1]]
    return Chart(
        shapes=shapes,
        lines=(),
        x_ticks=_token_ticks(facts),
        y_ticks=[Tick(place / 4, f"{25 * place} %") for place in range(5)],
        x_meaning="tokens read",
        summary=f"Share of {len(facts.corpora)} corpora in the samples of the run, in {len(facts.phases)} phases.",
        marks=[Tick(end / facts.num_samples, f"new weights after {_tokens(facts, end)} tokens") for end in ends],
    )


def _epoch_chart(facts: RunFacts) -> Chart:
    epochs = corpus_epochs(facts)
    y_ticks = nice_ticks(max((count for count in epochs if count is not None), default=0.0))
    lines = []
    for number, corpus in enumerate(facts.corpora):
        if corpus.samples_per_epoch is None:
            continue
        points, read = [(0.0, 0.0)], 0
        for phase in facts.phases:
            read += phase.samples[number]
            points.append((phase.end_sample / facts.num_samples, read / corpus.samples_per_epoch / y_ticks[-1]))
        lines.append(Line(points, number, f"{corpus.name}: {_known(epochs[number])} epochs at the end"))
    return Chart(
        shapes=(),
        lines=lines,
        x_ticks=_token_ticks(facts),
        y_ticks=[Tick(tick / y_ticks[-1], f"{tick:g}") for tick in y_ticks],
        x_meaning="tokens read",
        summary="Epochs at the end of the run: "
        + ", ".join(f"{corpus.name} {_known(count)}" for corpus, count in zip(facts.corpora, epochs, strict=True)),
    )


def _token_ticks(facts: RunFacts) -> Sequence[Tick]:
    total = facts.num_samples * facts.sequence_length
    return [Tick(tick / total, round_number(tick)) for tick in nice_ticks(total, most=6) if tick <= total]


def _tokens(facts: RunFacts, samples: int) -> str:
    return short(samples * facts.sequence_length)
