"""What a run reads, for its report. In: its samples and their number. Out: counts of each corpus in each phase."""

from megagpt.data.blend import BlendedSamples
from megagpt.data.blend_order import BlendOrder
from megagpt.data.report_run import RunCorpus, RunFacts, RunPhase


def run_facts(name: str, num_steps: int, num_samples: int, blend: BlendedSamples) -> RunFacts:
    """The first `num_samples` samples of a run, exactly counted; corpora in the order in which they came into it.

    An epoch of a corpus that is read no more, and not open, is not known.
    """
    begun = [phase for phase in blend.phases if phase.first_sample < num_samples]
    names = {corpus.fingerprint: corpus.name for phase in begun for corpus in phase.corpora}
    places = {fingerprint: place for place, fingerprint in enumerate(names)}
    phases = []
    for phase, end in zip(begun, [*(phase.first_sample for phase in begun[1:]), num_samples], strict=True):
        order = BlendOrder([corpus.weight for corpus in phase.corpora])
        counts = [0] * len(names)
        for corpus, count in zip(phase.corpora, order.counts(end - phase.first_sample).tolist(), strict=True):
            counts[places[corpus.fingerprint]] += count
        phases.append(RunPhase(end, tuple(counts)))
    return RunFacts(
        name=name,
        num_steps=num_steps,
        sequence_length=blend.sequence_length,
        corpora=tuple(
            RunCorpus(called, blend.samples[fingerprint].samples_per_epoch if fingerprint in blend.samples else None)
            for fingerprint, called in names.items()
        ),
        phases=tuple(phases),
    )
