"""The verb `build` of the data commands. In: parsed arguments. Out: a dataset, and a report on standard output."""

import argparse
from collections.abc import Mapping
from types import MappingProxyType

from megagpt.data.builder import BuildProgress, build_dataset
from megagpt.data.tool import Verb, add_corpus_arguments, positive_int, progress_bar, usable_cpus
from megagpt.tokenizer import load_tokenizer

INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `build`."""
    add_dataset_arguments(parser)
    parser.add_argument(
        "--restart", action="store_true", help="forget what a build that was stopped has committed, and start over"
    )
    parser.add_argument("--task", type=int, default=0, metavar="I", help="build only share I (from 0) of the input")
    parser.add_argument(
        "--no-native", action="store_true", help="encode with the tokenizer's own library, not the native encoder"
    )


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """What all tasks of a build have in common, and the number of threads."""
    add_corpus_arguments(parser)
    parser.add_argument("--output", required=True, metavar="PREFIX", help="dataset to write: PREFIX.bin, .idx, .json")
    parser.add_argument(
        "--tokenizer", required=True, metavar="FILE", help="tokenizer.model, tokenizer.json, vocab.txt, or their folder"
    )
    parser.add_argument(
        "--workers", type=positive_int, default=usable_cpus(), metavar="N", help="threads; unset: one for each CPU"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that exists")
    parser.add_argument(
        "--num-tasks",
        type=positive_int,
        default=1,
        metavar="N",
        help="number of shares; share I is written to PREFIX.task-I-of-N, and `merge` joins them",
    )


def run(args: argparse.Namespace) -> int:
    """Build, show progress on a terminal, and print the report."""
    with progress_bar("tokenizing") as show:

        def on_progress(done: BuildProgress) -> None:
            detail = f"{done.num_documents} documents, {done.num_tokens} tokens"
            show(done.input_bytes_read, done.input_bytes, detail)

        try:
            report = build_dataset(
                args.inputs,
                args.output,
                load_tokenizer(args.tokenizer),
                text_key=args.text_key,
                on_error=args.on_error,
                workers=args.workers,
                overwrite=args.overwrite,
                on_progress=on_progress,
                restart=args.restart,
                task=args.task,
                num_tasks=args.num_tasks,
                native=not args.no_native,
            )
        except KeyboardInterrupt:  # the build has said what is kept
            return INTERRUPTED
    print("\n".join(report.lines()))
    return 0


VERBS: Mapping[str, Verb] = MappingProxyType(
    {"build": Verb("Tokenize a corpus into an indexed dataset (Megatron's .bin and .idx).", add_arguments, run)}
)
