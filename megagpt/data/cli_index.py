"""The verb that makes sample indexes ahead of time. In: parsed arguments. Out: a report on standard output."""

import argparse
from collections.abc import Mapping
from types import MappingProxyType

from megagpt.data.tool import Verb, positive_int
from megagpt.errors import DataError


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="RUN|PREFIX", help="a run folder, a configuration (file or shipped name), or a dataset's prefix"
    )
    parser.add_argument(
        "--epochs",
        type=positive_int,
        metavar="N",
        help="most epochs to index; unset: all that a run reads, 1 for PREFIX",
    )
    parser.add_argument("--folder", help="folder of the index files; unset: data.index_folder, else beside the dataset")
    parser.add_argument("--split", metavar="A,B,C", help="for PREFIX: data.split of the run; unset: 0.98,0.01,0.01")
    parser.add_argument("--seed", type=int, help="for PREFIX: run.seed of the run; unset: 1234")
    parser.add_argument("--always", action="store_true", help="make files for small datasets too")


def _index(args: argparse.Namespace) -> int:
    from megagpt.data.index_dataset import index_dataset, index_run, is_dataset

    if is_dataset(args.data):
        shares = None if args.split is None else _shares(args.split)
        lines = index_dataset(args.data, shares, args.seed, args.epochs or 1, args.folder, args.always)
    elif args.split is not None or args.seed is not None:
        raise DataError(
            f"--split and --seed are for a dataset, and there is no {args.data}.idx; the configuration of a run has "
            "its own data.split and run.seed"
        )
    else:
        lines = index_run(args.data, args.epochs, args.folder, args.always)
    print("\n".join(lines))
    return 0


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, valid, test = (float(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"--split {text} must be three numbers from 0 to 1, such as 0.98,0.01,0.01") from None
    return train, valid, test


VERBS: Mapping[str, Verb] = MappingProxyType(
    {"index": Verb("Make the sample indexes of a run or a dataset ahead of time.", _add_index, _index)}
)
