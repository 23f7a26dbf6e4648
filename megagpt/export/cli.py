"""`megagpt export MODEL --format hf --output DIR`: writes a model for other software and prints the proof."""

import argparse

from megagpt.errors import ConfigError
from megagpt.export.options import GB, VERIFY_LEVELS, ExportOptions

_UNITS = {"B": 1, "MB": 10**6, "GB": GB, "MiB": 1 << 20, "GiB": 1 << 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `megagpt export`."""
    from megagpt.export.formats import FORMATS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "formats:\n" + "\n".join(f"  {name:21} {entry.help}" for name, entry in FORMATS.items())
    parser.add_argument(
        "source",
        metavar="MODEL",
        help="run folder (its latest checkpoint), checkpoint folder, or another's model folder",
    )
    parser.add_argument("--format", default="hf", metavar="NAME", help="one of those below (%(default)s)")
    parser.add_argument("--output", metavar="DIR", help="folder to write; must not exist")
    parser.add_argument("--dtype", help="number format of stored weights (default: the format's first)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")
    parser.add_argument(
        "--verify",
        choices=VERIFY_LEVELS,
        default="full",
        help="full: the client runs the model, needing twice its memory; sample: token ids, and the files read back; "
        "none (%(default)s)",
    )
    parser.add_argument("--shard-size", default="5GB", help="largest file of weights, as 500MB or 5GB (%(default)s)")
    parser.add_argument(
        "--tensor-ranks", type=int, default=1, metavar="N", help="files of formats with one a rank (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Exports and prints the report; returns 0. Raises MegagptError."""
    from megagpt.export.formats import find_exporter  # lazily: torch and megatron-core take seconds to import
    from megagpt.export.run import export_model
    from megagpt.parallel.mesh import destroy_mesh

    exporter = find_exporter(args.format)
    if args.output is None:
        raise ConfigError("--output DIR is missing: name the folder to write")
    options = ExportOptions(
        args.dtype or exporter.dtypes[0], args.overwrite, args.verify, num_bytes(args.shard_size), args.tensor_ranks
    )
    try:
        report = export_model(args.source, args.output, exporter, options)
    finally:
        destroy_mesh()
    print(report.summary())
    print(f"written to {args.output}")
    print(exporter.usage(args.output))
    return 0


def num_bytes(text: str) -> int:
    """A size such as `500MB`, `5 GB` or `1GiB`. Raises ConfigError."""
    for unit in sorted(_UNITS, key=len, reverse=True):
        number = text.removesuffix(unit).strip()
        if text.endswith(unit) and number.isascii() and number.isdigit() and int(number):
            return int(number) * _UNITS[unit]
    raise ConfigError(f"--shard-size {text!r} is no size; write a whole number and {', '.join(_UNITS)}, as in 5GB")
