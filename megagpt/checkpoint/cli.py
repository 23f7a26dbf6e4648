"""`megagpt checkpoint inspect|verify|prune PATH`: what a checkpoint holds, which are whole, which to keep."""

import argparse
from pathlib import Path

from megagpt.checkpoint.file_record import check_file
from megagpt.checkpoint.manifest import LATEST_NAME, MANIFEST_NAME, Manifest, step_folder
from megagpt.checkpoint.read import find_checkpoint, read_manifest
from megagpt.checkpoint.retention import latest_step, removable_steps, remove_steps, saved_steps
from megagpt.errors import CheckpointError

_DAMAGED = 1


def main(argv: list[str]) -> int:
    """Run the verb: 0, or 1 where `verify` finds a damaged checkpoint; errors are raised as MegagptError."""
    parser = argparse.ArgumentParser(
        prog="megagpt checkpoint", description="Looks into checkpoints, verifies and prunes them.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="inspect|verify|prune")
    inspect = verbs.add_parser("inspect", help="print the manifest", allow_abbrev=False)
    inspect.add_argument("path", type=Path, metavar="PATH", help="a checkpoint folder, or a run folder (its latest)")
    inspect.add_argument("--verify", action="store_true", help="read every file and compare its hash")
    verify = verbs.add_parser("verify", help="compare every file's hash, of all checkpoints", allow_abbrev=False)
    verify.add_argument("path", type=Path, metavar="PATH", help="a checkpoint folder, or a run folder (all of its)")
    prune = verbs.add_parser("prune", help="remove old checkpoints of a run", allow_abbrev=False)
    prune.add_argument("path", type=Path, metavar="RUN", help="a run folder")
    prune.add_argument("--keep", type=_at_least_one, required=True, metavar="K", help="newest checkpoints to keep")
    prune.add_argument("--keep-every", type=_at_least_one, metavar="N", help="keep those of every N-th step, too")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    options = parser.parse_args(argv)
    if options.verb == "inspect":
        return _inspect(options.path, options.verify)
    if options.verb == "verify":
        return _verify(options.path)
    return _prune(options.path, options.keep, options.keep_every or 0, options.dry_run)


def _inspect(path: Path, verify: bool) -> int:
    folder = find_checkpoint(path)
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        check_file(folder, name, record, verify)
    print("\n".join(describe(folder, manifest)))
    if verify:
        print(f"verified         {len(manifest.files)} files: sizes and hashes are right")
    return 0


def _verify(path: Path) -> int:
    """A line for each checkpoint; a damaged one does not hide the next."""
    if (path / MANIFEST_NAME).is_file():
        folders = [path]
    else:
        checkpoints = _checkpoints_of(path)
        folders = [checkpoints / step_folder(step) for step in saved_steps(checkpoints)]
    status = 0
    for folder in folders:
        try:
            manifest = read_manifest(folder)
            for name, record in manifest.files.items():
                check_file(folder, name, record, verify_hash=True)
            print(f"{folder}: {len(manifest.files)} files, sizes and hashes are right")
        except CheckpointError as error:
            print(f"{folder}: damaged: {error}")
            status = _DAMAGED
    return status


def _prune(path: Path, keep: int, keep_every_steps: int, dry_run: bool) -> int:
    checkpoints = _checkpoints_of(path)
    steps = saved_steps(checkpoints)
    doomed = removable_steps(steps, keep, keep_every_steps, latest_step(checkpoints))
    if not dry_run:
        remove_steps(checkpoints, doomed)
    for step in doomed:
        print(f"{'would remove' if dry_run else 'removed'} {checkpoints / step_folder(step)}")
    print(f"{len(steps) - len(doomed)} of {len(steps)} checkpoints {'would stay' if dry_run else 'stay'}")
    return 0


def _checkpoints_of(path: Path) -> Path:
    """The folder of a run's checkpoints, from the run folder or itself."""
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and ((folder / LATEST_NAME).is_file() or saved_steps(folder)):
            return folder
    raise CheckpointError(
        f"{path} holds no checkpoints: looked for step-… folders and {LATEST_NAME}; give a run folder"
    )


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


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
