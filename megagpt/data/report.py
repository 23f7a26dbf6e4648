"""Writes the report on datasets. In: prefixes, perhaps a tokenizer or a run. Out: one HTML file."""

from collections.abc import Sequence
from pathlib import Path

from megagpt.data.report_facts import gather_facts
from megagpt.data.report_page import page
from megagpt.data.report_run import run_section
from megagpt.durable import write_whole
from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer


def write_report(
    prefixes: Sequence[str], output: str | Path, tokenizer: Tokenizer | None, run: str | None = None
) -> Path:
    """Write the page on the datasets `prefixes` to `output`, replacing a report that is there.

    With a tokenizer they are checked against it and documents are decoded. `run`, a run folder or configuration, adds
    what the run reads of its corpora; its corpora and tokenizer are taken where none are given. Raises DataError, and
    what opening the run raises.
    """
    output = Path(output)
    section = ""
    if run is not None:
        from megagpt.data.report_blend import run_facts  # lazily: only a run needs configuration and plan
        from megagpt.data.run_samples import open_run_samples

        opened = open_run_samples(run)
        prefixes = prefixes or [corpus.entry.path for corpus in opened.corpora]
        tokenizer = tokenizer or opened.tokenizer
        section = run_section(run_facts(_run_name(run), opened.plan.num_steps, opened.num_samples, opened.blend))
    if not prefixes:
        raise DataError("nothing to report on: name datasets, or a run with --run")
    datasets = [gather_facts(prefix, tokenizer) for prefix in prefixes]
    content = page(datasets, tokenizer.path if tokenizer is not None else None, section)
    write_whole(output, content)
    return output


def _run_name(run: str) -> str:
    """The folder's name, or the configuration's without .toml."""
    return Path(run).name.removesuffix(".toml") or run
