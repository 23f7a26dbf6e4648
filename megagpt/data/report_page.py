"""The report: one HTML file with everything in it. In: the facts of datasets, perhaps of a run. Out: the page.

Nothing in it is fetched from elsewhere, and nothing depends on the time: the same data gives the same bytes.
"""

from collections.abc import Sequence

from megagpt.data.report_charts import bar
from megagpt.data.report_dataset import dataset_section, tokens_per_text
from megagpt.data.report_facts import DatasetFacts
from megagpt.data.report_style import STYLE
from megagpt.data.report_words import percent, short, size, text


def page(datasets: Sequence[DatasetFacts], tokenizer_path: str | None, run_section: str = "") -> str:
    """The whole file's content; `run_section` is HTML on the training run, empty without one."""
    title = datasets[0].name if len(datasets) == 1 else f"{len(datasets)} datasets"
    body = [
        f"<h1>Corpus report: {text(title)}</h1>",
        f'<p class="lead">{_lead(datasets, tokenizer_path)}</p>',
        _tiles(datasets),
        _table(datasets) if len(datasets) > 1 else "",
        run_section,
        *(dataset_section(facts, tokenizer_path is not None, len(datasets) > 1) for facts in datasets),
        "<footer>Made by <code>megagpt data report</code>. Tokens include one end-of-document id for each document; "
        "characters and bytes for a token are of the text alone.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Corpus report: {text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _lead(datasets: Sequence[DatasetFacts], tokenizer_path: str | None) -> str:
    kinds = {facts.sidecar.tokenizer_kind for facts in datasets if facts.sidecar is not None}
    prints = {facts.sidecar.fingerprint for facts in datasets if facts.sidecar is not None}
    if len(prints) == 1:
        made = f"Tokenized with {text(kinds.pop())} <code>{text(prints.pop()[:16])}…</code>"
    else:
        made = f"Tokenized with {len(prints)} different tokenizers" if prints else "The tokenizer is not known"
    return made + (f", decoded with {text(tokenizer_path)}." if tokenizer_path else ".")


def _tiles(datasets: Sequence[DatasetFacts]) -> str:
    documents = sum(facts.num_documents for facts in datasets)
    tokens = sum(facts.num_tokens for facts in datasets)
    tiles = [
        (short(tokens), f"tokens ({tokens:,})"),
        (short(documents), f"documents ({documents:,})"),
        (f"{tokens / documents:,.1f}", "tokens in a document on average"),
    ]
    sidecars = [facts.sidecar for facts in datasets]
    if all(sidecar is not None and sidecar.text_bytes for sidecar in sidecars):
        tiles.append((size(sum(sidecar.text_bytes for sidecar in sidecars if sidecar)), "text in UTF-8"))
    for place, name in enumerate(("characters", "bytes")):
        known = [tokens_per_text(sidecar)[place] if sidecar else None for sidecar in sidecars]
        if all(value is not None for value in known):
            weights = [facts.num_tokens - facts.num_documents for facts in datasets]
            mean = sum((value or 0) * weight for value, weight in zip(known, weights, strict=True)) / sum(weights)
            tiles.append((f"{mean:.3f}", f"{name} for a token"))
    tiles.append((size(sum(facts.bin_bytes for facts in datasets)), "of token ids on disk"))
    skipped = sum(sum(sidecar.skipped.values()) for sidecar in sidecars if sidecar)
    tiles.append((short(skipped), "documents left out"))
    cells = "".join(f'<div class="tile"><b class="num">{value}</b><span>{label}</span></div>' for value, label in tiles)
    return f'<div class="tiles">{cells}</div>'


def _table(datasets: Sequence[DatasetFacts]) -> str:
    total = sum(facts.num_tokens for facts in datasets)
    most = max(facts.num_tokens for facts in datasets)
    rows = []
    for number, facts in enumerate(datasets):
        characters = tokens_per_text(facts.sidecar)[0] if facts.sidecar else None
        rows.append(
            f'<div class="name">{text(facts.name)}<small>{text(facts.prefix)}</small></div>'
            f'<div class="wide"><div class="val num" data-label="tokens">{short(facts.num_tokens)} <small>'
            f"{percent(facts.num_tokens / total)}</small></div>{bar(facts.num_tokens / most, number)}</div>"
            f'<div><div class="val num" data-label="documents">{facts.num_documents:,}</div></div>'
            f'<div><div class="val num" data-label="characters/token">'
            f"{'not known' if characters is None else f'{characters:.3f}'}</div></div>"
        )
    head = "".join(
        f'<div class="th">{name}</div>' for name in ("dataset", "tokens", "documents", "characters for a token")
    )
    return f'<div class="card"><h3>The datasets</h3><div class="rows">{head}{"".join(rows)}</div></div>'
