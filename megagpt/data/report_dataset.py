"""The report's part on one dataset. In: its facts. Out: HTML."""

import math
from collections.abc import Sequence
from pathlib import PurePath

from megagpt.data.report_charts import Chart, Shape, Tick, bar, draw, legend, nice_ticks
from megagpt.data.report_facts import DatasetFacts, SampleDocument, known_sources
from megagpt.data.report_words import percent, power_of_two, short, size, text
from megagpt.data.sidecar import Shard, Sidecar, Source
from megagpt.tokenizer.protocol import END_OF_DOCUMENT

_SHOWN_SOURCES = 20
_SHOWN_SHARDS = 200
DOCUMENTS, TOKENS, CHARACTERS, BYTES = 0, 1, 2, 4  # colours


def dataset_section(facts: DatasetFacts, decoded: bool, titled: bool) -> str:
    """Everything about one dataset, under its name where `titled`; `decoded`: there was a tokenizer."""
    parts = [
        f"<h2>{text(facts.name)}</h2>" if titled else "",
        _lengths(facts),
        _sources(facts),
        _frequent(facts, decoded),
        f"<h3>{'Decoded documents' if decoded else 'Documents'}</h3>"
        '<p class="note">From the largest sources, evenly spread over each; long ones are cut.'
        f"{'' if decoded else ' Give --tokenizer to see their text.'}</p>",
        f'<div class="samples" style="margin-top:10px">{"".join(map(_sample, facts.samples))}</div>',
        _files(facts),
    ]
    return "".join(parts)


def tokens_per_text(counts: Source | Sidecar) -> tuple[float | None, float | None]:
    """Characters and bytes for each token (end-of-document ids aside); None where they are not known."""
    tokens = counts.num_tokens - counts.num_documents
    if tokens <= 0:
        return None, None
    characters = counts.num_characters / tokens if counts.num_characters else None
    return characters, counts.text_bytes / tokens if counts.text_bytes else None


def _lengths(facts: DatasetFacts) -> str:
    quantile = facts.lengths.quantile
    places = (("shortest", 0.0), ("a quarter below", 0.25), ("half below", 0.5), ("three quarters below", 0.75))
    words = [f"{name} <b>{quantile(share):,}</b>" for name, share in (*places, ("99 % below", 0.99), ("longest", 1.0))]
    return (
        '<div class="card"><h3>How long the documents are</h3>'
        f'<p class="note num">{" · ".join(words)} · mean <b>{facts.lengths.mean():,.1f}</b></p>'
        + draw(_length_chart(facts))
        + legend([(DOCUMENTS, "share of documents"), (TOKENS, "share of all tokens, in documents of this length")])
        + _length_table(facts)
        + "</div>"
    )


def _length_table(facts: DatasetFacts) -> str:
    """The chart's numbers, for those who cannot see it or want them exactly."""
    rows = "".join(
        f'<tr><td class="r">{row.first:,}</td><td class="r">{row.last:,}</td>'
        f'<td class="r">{row.num_documents:,}</td><td class="r">{percent(row.num_documents / facts.num_documents)}</td>'
        f'<td class="r">{row.num_tokens:,}</td><td class="r">{percent(row.num_tokens / facts.num_tokens)}</td></tr>'
        for row in facts.bins
        if row.num_documents
    )
    head = "".join(f'<th class="r">{name}</th>' for name in ("from", "to", "documents", "", "tokens in all", ""))
    return (
        "<details><summary>The numbers</summary>"
        f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div></details>'
    )


def _length_chart(facts: DatasetFacts) -> Chart:
    """Bars on a logarithmic axis, two for each bin: its share of the documents, and of the tokens."""
    bins = [row for row in facts.bins if row.last >= facts.lengths.lengths[0]]
    shares = [(row.num_documents / facts.num_documents, row.num_tokens / facts.num_tokens) for row in bins]
    y_ticks = nice_ticks(max(max(pair) for pair in shares))
    start, stop = _log_place(bins[0].first), _log_place(bins[-1].last + 1)
    shapes = []
    for row, pair in zip(bins, shares, strict=True):
        left = (_log_place(row.first) - start) / (stop - start)
        width = (_log_place(row.last + 1) - start) / (stop - start) - left
        where = f"{row.first:,} tokens" if row.first == row.last else f"{row.first:,} to {row.last:,} tokens"
        titles = (f"{row.num_documents:,} documents", f"{row.num_tokens:,} tokens in all")
        for side, (share, colour) in enumerate(((pair[0], DOCUMENTS), (pair[1], TOKENS))):
            title = f"{where}: {titles[side]} ({percent(share)})"
            shapes.append(
                Shape(left + (0.06 + 0.44 * side) * width, 0, 0.44 * width, share / y_ticks[-1], colour, title)
            )
    every = next(step for step in (1, 2, 4) if (stop - start) / step <= 9)  # more labels would meet on a phone
    powers = [power for power in range(math.ceil(start), math.floor(stop) + 1) if power % every == 0]
    return Chart(
        shapes=shapes,
        lines=(),
        x_ticks=[Tick((power - start) / (stop - start), power_of_two(2**power)) for power in powers],
        y_ticks=[Tick(tick / y_ticks[-1], f"{100 * tick:g} %") for tick in y_ticks],
        x_meaning="tokens in a document, with the end-of-document id (logarithmic)",
        summary=f"Documents by length: half of them are below {facts.lengths.quantile(0.5):,} tokens, "
        f"the longest has {facts.lengths.quantile(1):,}.",
    )


def _log_place(length: int) -> float:
    """Place on the axis; documents without tokens, which Megatron allows, stand before those with one."""
    return math.log2(length) if length else -1.0


def _sources(facts: DatasetFacts) -> str:
    head = '<div class="card"><h3>Where the tokens come from, and how well the tokenizer compresses</h3>'
    sources = known_sources(facts.sidecar)
    if not sources:
        why = "Megatron writes no record of it" if facts.sidecar is None else "the dataset is of an older format"
        names = (
            [] if facts.sidecar is None else [text(source.path) for source in facts.sidecar.sources[:_SHOWN_SOURCES]]
        )
        return f'{head}<p class="note">What came from each file is not known: {why}.</p>{"<br>".join(names)}</div>'
    rows = _shown_sources(sources)
    most = max(row.num_tokens for row in rows)
    pairs = [tokens_per_text(row) for row in rows]
    tops = [max((pair[kind] or 0.0 for pair in pairs), default=0.0) for kind in (0, 1)]
    cells = ['<div class="th">source</div><div class="th">tokens</div>']
    cells.append('<div class="th">characters for a token</div><div class="th">bytes for a token</div>')
    for row, pair in zip(rows, pairs, strict=True):
        cells.append(_source_name(row))
        share = row.num_tokens / facts.num_tokens
        cells.append(
            f'<div class="wide"><div class="val num" data-label="tokens">{short(row.num_tokens)} '
            f"<small>{percent(share)} · {row.num_documents:,} documents</small></div>"
            f"{bar(row.num_tokens / most, TOKENS)}</div>"
        )
        for kind, (label, colour) in enumerate((("characters/token", CHARACTERS), ("bytes/token", BYTES))):
            value = pair[kind]
            known = f"{value:.3f}" if value is not None else "not known"
            drawn = bar(value / tops[kind], colour) if value is not None else ""
            cells.append(f'<div><div class="val num" data-label="{label}">{known}</div>{drawn}</div>')
    return f'{head}<div class="rows">{"".join(cells)}</div></div>'


def _shown_sources(sources: Sequence[Source]) -> list[Source]:
    """All sources, or the largest in their order and one for the rest."""
    if len(sources) <= _SHOWN_SOURCES:
        return list(sources)
    order = sorted(range(len(sources)), key=lambda number: -sources[number].num_tokens)
    shown, rest = sorted(order[: _SHOWN_SOURCES - 1]), [sources[number] for number in order[_SHOWN_SOURCES - 1 :]]
    known = all(source.num_characters and source.text_bytes for source in rest if source.num_tokens)
    together = Source(
        path=f"{len(rest):,} other files",
        size_bytes=sum(source.size_bytes or 0 for source in rest) or None,
        num_documents=sum(source.num_documents for source in rest),
        num_tokens=sum(source.num_tokens for source in rest),
        text_bytes=sum(source.text_bytes for source in rest) if known else 0,
        num_characters=sum(source.num_characters for source in rest) if known else 0,
    )
    return [*(sources[number] for number in shown), together]


def _source_name(source: Source) -> str:
    path = PurePath(source.path)
    folder = "" if str(path.parent) == "." else f"{path.parent}/"
    stored = "" if source.size_bytes is None else f" · {size(source.size_bytes)}"
    return f'<div class="name">{text(path.name)}<small>{text(folder)}{stored}</small></div>'


def _frequent(facts: DatasetFacts, decoded: bool) -> str:
    counts = facts.token_counts
    most = facts.frequent[0].occurrences
    cells = []
    for token in facts.frequent:
        share = token.occurrences / counts.num_counted
        shown = text(token.text) if decoded else str(token.token_id)
        cells.append(
            f'<div class="token" title="id {token.token_id}: {token.occurrences:,} times"><div><b>{shown}</b>'
            f'<span class="num">{percent(share)}</span></div>{bar(token.occurrences / most, TOKENS)}</div>'
        )
    sample = ""
    if counts.num_counted < counts.num_tokens:
        sample = f" Counted in {short(counts.num_counted)} of the {short(counts.num_tokens)} tokens, evenly spread."
    never = ""
    if facts.vocab_size:
        unused = counts.never_used()
        never = f"; {unused:,} of {facts.vocab_size:,} ids ({percent(unused / facts.vocab_size)}) never occur"
    return (
        '<div class="card"><h3>Most frequent tokens</h3>'
        f'<p class="note num">{counts.covering(0.5):,} ids make up half of all tokens, {counts.covering(0.9):,} make '
        f"up 90 %{never}.{sample}</p>"
        f'<div class="tokens">{"".join(cells)}</div></div>'
    )


def _sample(sample: SampleDocument) -> str:
    source = "" if sample.source is None else f" · {text(PurePath(sample.source).name)}"
    body = sample.text
    whole = body.endswith(END_OF_DOCUMENT)
    end = '<span class="end">end of document</span>' if whole else ""
    return (
        f'<article class="card sample"><p class="note num">document {sample.number:,} · {sample.num_tokens:,} tokens'
        f"{source}</p><pre>{text(body.removesuffix(END_OF_DOCUMENT))}{end}</pre></article>"
    )


def _files(facts: DatasetFacts) -> str:
    rows = [
        ("files", f"<code>{text(facts.prefix)}.bin</code>, .idx{', .json' if facts.sidecar else ''}"),
        ("token ids", f"{size(facts.bin_bytes)} of {facts.dtype}"),
    ]
    sidecar = facts.sidecar
    if sidecar is None:
        rows.append(("tokenizer", "not known: there is no .json beside the dataset"))
        return f'<div class="card"><h3>Files and hashes</h3>{_definitions(rows)}</div>'
    rows.append(
        (
            "tokenizer",
            f"{text(sidecar.tokenizer_kind)}, {sidecar.vocab_size:,} ids, documents end with id {sidecar.eod_id}",
        )
    )
    rows.append(("fingerprint", f"<code>{text(sidecar.fingerprint)}</code>"))
    left = [f"{count:,} · {text(reason)}" for reason, count in sidecar.skipped.items()]
    rows.append(("left out", "<br>".join(left) or "nothing"))
    rows.append(
        ("shards", f"{len(sidecar.shards):,} with a hash each" if sidecar.shards else "no hashes: an older format")
    )
    return f'<div class="card"><h3>Files and hashes</h3>{_definitions(rows)}{_shards(facts, sidecar)}</div>'


def _definitions(rows: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in rows)}</dl>"


def _shards(facts: DatasetFacts, sidecar: Sidecar) -> str:
    if not sidecar.shards:
        return ""
    itemsize = facts.bin_bytes // facts.num_tokens
    rows, start = [], 0
    for number, shard in enumerate(sidecar.shards[:_SHOWN_SHARDS]):
        stop = start + shard.num_tokens * itemsize
        rows.append(
            f'<tr><td class="r">{number}</td><td class="r">{start:,}</td><td class="r">{stop:,}</td>'
            f'<td class="r">{shard.num_documents:,}</td><td>{text(_origin(sidecar, shard))}</td>'
            f"<td><code>{shard.hash}</code></td></tr>"
        )
        start = stop
    more = len(sidecar.shards) - len(rows)
    rest = f'<p class="note">and {more:,} more, in {text(facts.name)}.json</p>' if more else ""
    heads = [("r", "shard"), ("r", "from byte"), ("r", "to"), ("r", "documents"), ("", "made from"), ("", "hash")]
    head = "".join(f'<th class="{kind}">{name}</th>' for kind, name in heads)
    return (
        "<details><summary>Hashes (xxh3_128) of the shards of .bin, which <code>megagpt data inspect --verify</code> "
        f'compares</summary><div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>{rest}</details>'
    )


def _origin(sidecar: Sidecar, shard: Shard) -> str:
    first = PurePath(sidecar.sources[shard.first_source].path).name
    last = PurePath(sidecar.sources[shard.last_source].path).name
    if shard.first_source == shard.last_source:
        return f"{first} {shard.first_position:,} – {shard.last_position:,}"
    return f"{first} {shard.first_position:,} – {last} {shard.last_position:,}"
