"""The tokenizer verbs of the command line: train. In: parsed arguments. Out: a report on standard output."""

import argparse
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import get_args

from megagpt.data.documents import ReadReport, read_documents
from megagpt.data.tool import Verb, add_corpus_arguments, positive_int
from megagpt.tokenizer.train import Normalization, TokenizerSettings, train_sentencepiece


def _add_train(parser: argparse.ArgumentParser) -> None:
    defaults = TokenizerSettings()
    add_corpus_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="model to write, such as tokenizer.model")
    parser.add_argument("--vocab-size", type=positive_int, default=defaults.vocab_size, help="number of token ids")
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default=defaults.model_type, help="kind of model")
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=defaults.character_coverage,
        help="share of the text's characters that get pieces of their own; 0.9995 is for Chinese, 1 for few characters",
    )
    parser.add_argument(
        "--byte-fallback",
        action=argparse.BooleanOptionalAction,
        default=defaults.byte_fallback,
        help="characters without a piece become their bytes; otherwise they are one unknown token and lost",
    )
    parser.add_argument(
        "--split-digits",
        action=argparse.BooleanOptionalAction,
        default=defaults.split_digits,
        help="every digit is a token of its own",
    )
    parser.add_argument(
        "--normalization",
        choices=get_args(Normalization),
        default=defaults.normalization,
        help="what is done to text first; anything but identity changes it, so that decoding gives other text",
    )
    parser.add_argument(
        "--max-piece-characters",
        type=positive_int,
        default=defaults.max_piece_characters,
        help="longest piece; llama-cpp-python drops pieces of more than 32 bytes, 10 Chinese characters",
    )
    parser.add_argument(
        "--symbol",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text that is always one token, such as a marker of your corpus; may be given several times",
    )
    parser.add_argument(
        "--max-megabytes",
        type=positive_int,
        default=defaults.max_training_bytes // 10**6,
        help="most text to train on, in MB; a larger corpus is sampled",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of the sample")


def _train(args: argparse.Namespace) -> int:
    settings = TokenizerSettings(
        vocab_size=args.vocab_size,
        model_type=args.model_type,
        character_coverage=args.character_coverage,
        split_digits=args.split_digits,
        byte_fallback=args.byte_fallback,
        normalization=args.normalization,
        max_piece_characters=args.max_piece_characters,
        symbols=tuple(args.symbol),
        max_training_bytes=args.max_megabytes * 10**6,
        seed=args.seed,
    )
    reading = ReadReport()
    documents = read_documents(args.inputs, args.text_key, args.on_error, reading)
    texts: Iterator[str] = (document.text for document in documents)
    report = train_sentencepiece(texts, args.output, settings)
    print("\n".join([*report.lines(), *reading.skipped_lines()]))
    return 0


VERBS: Mapping[str, Verb] = MappingProxyType(
    {"train": Verb("Train a SentencePiece tokenizer on a corpus and report how it does.", _add_train, _train)}
)
