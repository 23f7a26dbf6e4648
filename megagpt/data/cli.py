"""The data verbs of the command line, and those of its own: sample, show.

In: parsed arguments. Out: reports on standard output. What a verb needs is imported when it runs.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from megagpt.data import cli_array, cli_build, cli_clean, cli_datasets, cli_index
from megagpt.data.tool import Verb, add_corpus_arguments, positive_int
from megagpt.errors import DataError

__all__ = ["VERBS", "add_corpus_arguments", "positive_int"]


def _add_sample(parser: argparse.ArgumentParser) -> None:
    from megagpt.data.sample_corpora import SAMPLE_CORPORA

    names = ", ".join(corpus.name for corpus in SAMPLE_CORPORA)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sample corpora, in the order to write them: {names}")
    parser.add_argument("--output", metavar="FILE", help="JSONL file to write; unset: data/NAME-NAME.jsonl")
    parser.add_argument("--list", action="store_true", help="show the sample corpora and stop")


def _sample(args: argparse.Namespace) -> int:
    from megagpt.data.sample_corpora import cache_folder, write_sample_corpora

    if args.list:
        print("\n".join(_sample_lines()))
        return 0
    if not args.names:
        raise DataError("no sample corpus was named; --list shows them")
    output = Path(args.output or f"data/{'-'.join(args.names)}.jsonl")
    counts = write_sample_corpora(args.names, output, cache_folder())
    documents = ", ".join(f"{name}: {count} documents" for name, count in counts.items())
    print(f"{output} ({output.stat().st_size / 1e6:.2f} MB; {documents})")
    return 0


def _sample_lines() -> list[str]:
    from megagpt.data.sample_corpora import SAMPLE_CORPORA

    lines: list[str] = []
    for corpus in SAMPLE_CORPORA:
        package = corpus.package
        lines += [
            f"{corpus.name:12} {corpus.about}",
            f"{'':12} text      {corpus.text_bytes / 1e6:.1f} MB in {corpus.num_documents} documents",
            f"{'':12} licence   {corpus.licence}",
            f"{'':12} package   {package.registry} {package.name} {package.version}, "
            f"{package.size_bytes / 1e6:.1f} MB, sha256 {package.sha256[:16]}…",
        ]
    return lines


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="a run folder, a configuration file, or a shipped configuration's name"
    )
    parser.add_argument("--step", type=int, default=0, metavar="N", help="updates done before the batch (default: 0)")


def _show(args: argparse.Namespace) -> int:
    from megagpt.data.show_run import show_step  # lazily: it needs torch

    print(show_step(args.run, args.step))
    return 0


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "sample": Verb("Write free sample texts, downloaded from package registries, as JSONL.", _add_sample, _sample),
        **cli_build.VERBS,
        **cli_array.VERBS,
        **cli_clean.VERBS,
        "show": Verb("Show the text of a run's training batch at a step.", _add_show, _show),
        **cli_datasets.VERBS,
        **cli_index.VERBS,
    }
)
