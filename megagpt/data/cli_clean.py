"""The verb `clean-chinese` of the data commands. In: parsed arguments. Out: a dataset; a report on standard output."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from megagpt.data.chinese_text import Rules
from megagpt.data.tool import Verb, add_corpus_arguments, positive_int
from megagpt.errors import DataError

if TYPE_CHECKING:
    from megagpt.data.recipe_chinese import CleanSettings


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} must be from 0 to 1")
    return value


def option(text: str) -> tuple[str, str]:
    """An argparse type: NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text} must be NAME=VALUE, such as account=mine")
    return name.lstrip("-"), value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `clean-chinese`."""
    add_corpus_arguments(parser)
    parser.add_argument("--output", required=True, metavar="PREFIX", help="dataset to write: PREFIX.bin, .idx, .json")
    parser.add_argument("--tokenizer", required=True, metavar="FILE", help="the tokenizer's file")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes at a time")
    parser.add_argument(
        "--tasks",
        type=positive_int,
        metavar="N",
        help="parts the corpus is cut into; unset: as the cleaning was begun with, at first the number of workers",
    )
    parser.add_argument("--work", metavar="FOLDER", help="texts between steps, logs, markers; unset: PREFIX.cleaning")
    parser.add_argument(
        "--form", choices=("NFC", "NFKC"), default="NFC", help="normal form; NFKC makes Chinese punctuation ASCII too"
    )
    parser.add_argument("--simplified", action="store_true", help="traditional to simplified characters (needs opencc)")
    parser.add_argument(
        "--min-characters", type=int, default=Rules.min_characters, metavar="N", help="shortest document"
    )
    parser.add_argument(
        "--min-han",
        type=share,
        default=Rules.min_han,
        metavar="SHARE",
        help="least share of Han characters in the letters",
    )
    parser.add_argument("--bad-words", metavar="FILE", help="a word a line; a document with any of them is left out")
    parser.add_argument("--keep-removed", action="store_true", help="keep what was removed in FOLDER/removed, as JSONL")
    parser.add_argument("--text-output", metavar="FOLDER", help="write the clean documents as JSONL, too")
    parser.add_argument("--restart", action="store_true", help="start over, and replace a dataset that exists")
    _add_slurm_arguments(parser)


def _add_slurm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slurm-partition", metavar="NAME", help="submit the steps to SLURM instead of running them")
    parser.add_argument("--slurm-time", default="24:00:00", metavar="TIME", help="time limit of a step")
    parser.add_argument("--slurm-memory", type=positive_int, default=4, metavar="GB", help="memory of a task")
    parser.add_argument(
        "--slurm-option", type=option, action="append", default=[], metavar="NAME=VALUE", help="more options of sbatch"
    )


def run(args: argparse.Namespace) -> int:
    """Clean, or submit the cleaning, and print what became of the documents."""
    from megagpt.data.recipe_chinese import chinese_stages
    from megagpt.data.recipe_plan import begin, held
    from megagpt.data.recipe_report import clean_report, report_path
    from megagpt.data.recipe_run import SlurmOptions, run_here, silence, submit

    silence()
    settings = _settings(args)
    stages = chinese_stages(settings)
    with held(settings.work):
        begin(settings, args.restart)
        if args.slurm_partition is not None:
            slurm = SlurmOptions(args.slurm_partition, args.slurm_time, args.slurm_memory, dict(args.slurm_option))
            print("\n".join(submit(settings.work, stages, slurm, Path(sys.prefix) / "bin" / "activate")))
            print(f"when the last job is done: {report_path(settings.output)}; logs in {settings.work}/logs")
            return 0
        run_here(settings.work, stages, args.workers, on_stage=lambda line: print(line, flush=True))
    print("\n".join(clean_report(settings.work).lines()))
    print(f"dataset        {settings.output}.bin, .idx, .json; this report: {report_path(settings.output)}")
    return 0


def _settings(args: argparse.Namespace) -> "CleanSettings":
    from megagpt.data.recipe_chinese import CleanSettings
    from megagpt.data.recipe_plan import planned_tasks

    if args.slurm_partition is not None and args.tasks is None:
        raise DataError("--slurm-partition needs --tasks: into how many parts the corpus is cut")
    work = Path(args.work if args.work is not None else f"{args.output}.cleaning").absolute()
    words = () if args.bad_words is None else _words(args.bad_words)
    return CleanSettings(
        inputs=tuple(args.inputs),
        output=args.output,
        tokenizer=args.tokenizer,
        work=work,
        tasks=args.tasks or (None if args.restart else planned_tasks(work)) or args.workers,
        text_key=args.text_key,
        on_error=args.on_error,
        form=args.form,
        simplified=args.simplified,
        rules=Rules(min_characters=args.min_characters, min_han=args.min_han, bad_words=words),
        keep_removed=args.keep_removed,
        text_output=args.text_output,
    )


def _words(path: str) -> tuple[str, ...]:
    """The lines of a file that are not empty."""
    try:
        words = tuple(filter(None, map(str.strip, Path(path).read_text(encoding="utf-8-sig").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the bad words in {path}: {error}; name a UTF-8 file with a word a line"
        ) from error
    if not words:
        raise DataError(f"{path} has no word; name a file with a word a line, or leave out --bad-words")
    return words


VERBS: Mapping[str, Verb] = MappingProxyType(
    {"clean-chinese": Verb("Clean a Chinese corpus and tokenize it into an indexed dataset.", add_arguments, run)}
)
