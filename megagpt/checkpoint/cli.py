"""`megagpt checkpoint inspect PATH`: what a checkpoint holds, and with --verify whether every file is whole."""

import argparse
from pathlib import Path

from megagpt.checkpoint.manifest import Manifest, check_file
from megagpt.checkpoint.read import find_checkpoint, read_manifest


def main(argv: list[str]) -> int:
    """Run the verb; errors are raised as MegagptError for the caller to print."""
    parser = argparse.ArgumentParser(
        prog="megagpt checkpoint", description="What is in a checkpoint.", allow_abbrev=False
    )
    parser.add_argument("verb", choices=("inspect",), help="inspect: print the manifest")
    parser.add_argument("path", type=Path, metavar="PATH", help="a checkpoint folder, or a run folder (its latest)")
    parser.add_argument("--verify", action="store_true", help="read every file and compare its hash")
    options = parser.parse_args(argv)
    folder = find_checkpoint(options.path)
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        check_file(folder, name, record, options.verify)
    print("\n".join(describe(folder, manifest)))
    if options.verify:
        print(f"verified         {len(manifest.files)} files: sizes and hashes are right")
    return 0


def describe(folder: Path, manifest: Manifest) -> list[str]:
    """Lines for a person."""
    spec = manifest.spec
    loss = "unknown" if manifest.loss is None else f"{manifest.loss:.4f} nats/token"
    lines = [
        f"checkpoint       {folder}",
        f"progress         step {manifest.step:,}, {manifest.tokens:,} tokens, training loss {loss}",
        f"model            {spec.name}: {spec.num_layers} layers, {spec.num_heads} heads, hidden {spec.hidden_size}, "
        f"context {spec.sequence_length}, vocabulary {spec.vocab_size:,} (padded {spec.padded_vocab_size:,}), "
        f"{spec.activation}",
        f"layout           {manifest.layout.describe()}, {manifest.precision}, seed {manifest.seed}",
        f"tokenizer        {manifest.tokenizer_file or 'none'} (sha256 {manifest.tokenizer_fingerprint})",
        *(f"data             from sample {phase.first_sample:,} on {phase.describe()}" for phase in manifest.phases),
        f"written by       megagpt {manifest.megagpt_version}, format {manifest.format_version}",
    ]
    return [
        *lines,
        *(f"file             {name}  {record.num_bytes:,} bytes" for name, record in manifest.files.items()),
    ]
