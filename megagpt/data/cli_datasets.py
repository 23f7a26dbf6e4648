"""The verbs for datasets that exist: merge, inspect, split, report. In: parsed arguments. Out: reports on standard
output. What a verb needs is imported when it runs.
"""

import argparse
import os
from collections.abc import Mapping
from types import MappingProxyType

from megagpt.data.tool import Verb, positive_int, progress_bar, usable_cpus

_MOST_WORKERS = 8


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="dataset to write: OUT.bin, .idx, .json")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="datasets to join, in this order: prefixes, or globs such as 'PREFIX.task-*-of-00016' (in quotes)",
    )
    parser.add_argument("--verify", action="store_true", help="compare the hash of each shard, read from the new file")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that exists")
    _add_workers(parser)


def _merge(args: argparse.Namespace) -> int:
    from megagpt.data.merge import merge_datasets

    with progress_bar("joining") as show:
        report = merge_datasets(
            args.output,
            args.inputs,
            verify=args.verify,
            overwrite=args.overwrite,
            workers=args.workers,
            on_bytes=lambda done, total: show(done, total, f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"),
        )
    print("\n".join(report.lines()))
    return 0


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="PREFIX", help="dataset without .bin and .idx")
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="decode with this tokenizer, and check that it is the right one"
    )
    parser.add_argument(
        "--document", type=_natural, metavar="N", help="number of the one document to show; unset: --samples"
    )
    parser.add_argument("--samples", type=_natural, default=3, metavar="N", help="documents to show, evenly spread")
    parser.add_argument(
        "--top", type=_natural, default=20, metavar="N", help="most frequent ids to show; 0: do not count ids"
    )
    parser.add_argument("--verify", action="store_true", help="read everything: hash of each shard, ids, document ends")
    _add_workers(parser)


def _inspect(args: argparse.Namespace) -> int:
    from megagpt.data.inspect import Shown, inspect_dataset
    from megagpt.data.verify import verify_dataset
    from megagpt.tokenizer import load_tokenizer

    verified: list[str] = []
    if args.verify:
        with progress_bar("verifying") as show:
            found = verify_dataset(
                args.dataset,
                args.workers,
                lambda done, total: show(done, total, f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"),
            )
        found.raise_problems()
        verified = found.lines()
    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    lines = inspect_dataset(args.dataset, tokenizer, Shown(args.document, args.samples, args.top))
    print("\n".join([*verified, *lines]))
    return 0


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="PREFIX", help="dataset to split; it stays as it is")
    parser.add_argument(
        "--output", required=True, metavar="PREFIX", help="datasets to write: PREFIX-train, PREFIX-valid, PREFIX-test"
    )
    for side, share in (("train", 0.98), ("valid", 0.01), ("test", 0.01)):
        parser.add_argument(f"--{side}", type=float, default=share, metavar="SHARE", help=f"share of {side}; 0: none")
    parser.add_argument(
        "--seed", type=_natural, default=0, metavar="N", help="another seed puts documents on other sides"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace datasets that exist")


def _split(args: argparse.Namespace) -> int:
    from megagpt.data.split_documents import split_dataset

    with progress_bar("splitting") as show:
        report = split_dataset(
            args.dataset,
            args.output,
            (args.train, args.valid, args.test),
            seed=args.seed,
            overwrite=args.overwrite,
            on_tokens=lambda done, total: show(done, total, f"{done / 1e6:.0f} of {total / 1e6:.0f} M tokens"),
        )
    print("\n".join(report.lines()))
    return 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("datasets", nargs="*", metavar="PREFIX", help="datasets without .bin and .idx; unset: --run's")
    parser.add_argument("--output", required=True, metavar="FILE", help="page to write, such as report.html")
    parser.add_argument(
        "--run", metavar="RUN", help="a run folder or configuration: show what it reads of its corpora, and when"
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="show text instead of ids, decoded with this tokenizer; unset: --run's"
    )


def _report(args: argparse.Namespace) -> int:
    from megagpt.data.report import write_report
    from megagpt.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    output = write_report(args.datasets, args.output, tokenizer, args.run)
    print(f"{output} ({os.path.getsize(output) / 1e3:.0f} kB)")
    return 0


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} must be at least 0")
    return value


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=min(usable_cpus(), _MOST_WORKERS),
        metavar="N",
        help=f"threads of --verify (default: one a processor, at most {_MOST_WORKERS})",
    )


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "merge": Verb("Join datasets, such as the tasks of a build, into one.", _add_merge, _merge),
        "inspect": Verb("Show what is in an indexed dataset and check its files.", _add_inspect, _inspect),
        "split": Verb("Split a dataset into train, valid and test by what its documents say.", _add_split, _split),
        "report": Verb(
            "Write one HTML page on datasets: lengths, sources, compression, samples.", _add_report, _report
        ),
    }
)
