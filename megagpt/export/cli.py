"""`megagpt export CHECKPOINT --format hf --output DIR`: writes a model for other software and prints the proof."""

import argparse

from megagpt.export.report import DTYPES

_USE = """load it with: transformers.AutoModelForCausalLM.from_pretrained("{output}")"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `megagpt export`."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="run folder (its latest checkpoint) or checkpoint folder"
    )
    parser.add_argument(
        "--format", choices=["hf"], default="hf", help="hf: Hugging Face transformers, GPT-2 architecture"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="number format of stored weights (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")


def run(args: argparse.Namespace) -> int:
    """Exports and prints the report; returns 0. Raises MegagptError."""
    from megagpt.export.huggingface import export_huggingface  # lazily: torch and megatron-core take seconds to import
    from megagpt.parallel.mesh import destroy_mesh

    try:
        report = export_huggingface(args.checkpoint, args.output, args.dtype, args.overwrite)
    finally:
        destroy_mesh()
    print(report.summary())
    print(f"written to {args.output}")
    print(_USE.format(output=args.output))
    return 0
