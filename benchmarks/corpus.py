"""Tokenizing a corpus: ours beside its peers and beside the limits, every one as a whole process, in one run.

In: a JSONL file, a SentencePiece BPE model, checkouts of the peers (README.md beside this file). Out: a JSON file with
every run and a table in Markdown. Never imports torch; what it measures runs in other processes.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from corpus_peers.bench import Bench, Plan
from corpus_peers.cases import Case, builder_cases, format_cases, limit_cases, start_cases, tokenizer_cases
from corpus_peers.contenders import CONTENDERS, OURS, Contender, Corpus, Places
from corpus_peers.inputs import (
    compressed,
    converted_tokenizer,
    corpus,
    one_document,
    other_tokenizers,
    repeated,
    sample,
    size_argument,
)
from corpus_peers.results import goals, key, markdown, rows
from machine import ROOT, commit, machine, versions

PACKAGES = ("numpy", "sentencepiece", "tokenizers", "orjson", "pyarrow", "zstandard", "datatrove", "jieba")
PEER_PACKAGES = ("torch", "transformers", "sentencepiece", "gigatoken", "awkward", "lm-dataformat")
PARTS = ("start", "base", "repeat", "limits", "formats", "long", "tokenizers")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--input", type=Path, required=True, help='JSONL file, key "text"')
    made.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece BPE model with an eos symbol")
    made.add_argument("--repeat-to", type=size_argument, metavar="SIZE", help="measure a repetition too, such as 1GB")
    made.add_argument("--peers-dir", type=Path, help="folder with the checkouts megatron-lm and gpt-neox")
    made.add_argument("--peers-python", help="Python of the peers (default: PEERS_DIR/venv/bin/python)")
    names = ", ".join(CONTENDERS)
    made.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of {names} (default: all)")
    made.add_argument(
        "--repeat-contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help="those on the repetition"
    )
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    made.add_argument(
        "--repeat-peer-workers", nargs="+", type=int, metavar="N", help="workers of the peers there (default: the most)"
    )
    made.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="numbers of workers (default: 1 2)")
    made.add_argument("--rounds", type=int, default=5, help="runs of each case, interleaved (default: 5)")
    made.add_argument("--repeat-rounds", type=int, default=3, help="the same on the repetition (default: 3)")
    made.add_argument(
        "--sample-size", type=size_argument, default="10MB", help="text for WordPiece and Jieba-BPE (default: 10MB)"
    )
    made.add_argument("--work", type=Path, help="empty folder for inputs and outputs; kept (default: a temporary one)")
    made.add_argument("--timeout", type=float, default=3600, help="seconds after which a run has failed")
    made.add_argument("--output", type=Path, help="JSON file; .md beside it (default: results/corpus-DATE.json)")
    return made


def main() -> int:
    """Measure and write the result files."""
    options = parser().parse_args()
    started = date.today().isoformat()
    output = options.output or Path(__file__).resolve().parent / "results" / f"corpus-{started}.json"
    work = Path(tempfile.mkdtemp(prefix="corpus-benchmark-")) if options.work is None else options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        raise SystemExit(f"--work {work} is not empty; name a new folder")
    try:
        places, contenders, missing = _contenders(options, work)
        bench = Bench(work, options.timeout, _hidden(options, places, output))
        inputs: dict[str, str] = {}
        for plan in _plans(options, places, contenders, bench, inputs):
            try:
                bench.run(plan)
            finally:  # an interrupted measurement leaves what it has
                _write(output, options, bench, inputs, missing, started, places)
    finally:
        if options.work is None:
            shutil.rmtree(work)
    print(output.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


def _contenders(options: argparse.Namespace, work: Path) -> tuple[Places, list[Contender], dict[str, str]]:
    """Where things lie, who can run here, and why the others cannot."""
    peers = None if options.peers_dir is None else options.peers_dir.resolve()
    own_python = None if peers is None else peers / "venv" / "bin" / "python"
    python = options.peers_python or (str(own_python) if own_python and own_python.exists() else sys.executable)
    folder, end_symbol = converted_tokenizer(options.tokenizer.resolve(), work)
    places = Places(work, options.tokenizer.resolve(), folder, end_symbol, peers, python)
    asked = [CONTENDERS[name] for name in options.contenders or CONTENDERS]
    reasons = {contender.name: contender.missing(places) for contender in asked}
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in missing.items():
        print(f"{name} is not installed: {reason}", file=sys.stderr)
    return places, [contender for contender in asked if contender.name not in missing], missing


def _plans(
    options: argparse.Namespace,
    places: Places,
    contenders: Sequence[Contender],
    bench: Bench,
    inputs: dict[str, str],
) -> Iterator[Plan]:
    """What to run, made when its turn comes. Adds to `inputs` what each input is, in words."""
    work, most = places.work, max(options.workers)
    source = options.input.resolve()
    if "start" in options.parts:
        one = _derived(work / "one.jsonl", lambda target: sample(source, target, 0))
        inputs["one"] = "one document"
        yield Plan(list(start_cases(places, contenders, corpus("one", one, work, {1, most}), most)), options.rounds)
    sizes = [("base", source, options.contenders, options.workers, options.rounds)]
    if options.repeat_to and "repeat" in options.parts:
        peer_workers = options.repeat_peer_workers or [most]
        sizes.append(("repeat", work / "repeat.jsonl", options.repeat_contenders, peer_workers, options.repeat_rounds))
    for name, path, chosen, peer_workers, rounds in sizes:
        if name == "repeat":
            _derived(path, lambda target: repeated(source, target, options.repeat_to))
        if name in options.parts:
            entrants = [contender for contender in contenders if not chosen or contender.name in chosen]
            one_corpus = corpus(name, path, work, {1, 2, *options.workers})
            inputs[name] = f"{one_corpus.num_bytes / 1e6:.1f} MB of JSONL" + (" (repeated)" if name == "repeat" else "")
            yield Plan(_size_cases(options, places, entrants, one_corpus, peer_workers, bench), rounds)
    if "long" in options.parts:
        path = _derived(work / "long.jsonl", lambda target: one_document(source, target))
        long = corpus("long", path, work, {1})
        inputs["long"] = f"one document of {long.num_bytes / 1e6:.1f} MB"
        yield Plan(list(builder_cases(places, [CONTENDERS[OURS]], long, [most], [])), options.repeat_rounds)
    if "tokenizers" in options.parts:
        part = _derived(work / "sample.jsonl", lambda target: sample(source, target, options.sample_size))
        few = corpus("sample", part, work, {1})
        inputs["sample"] = f"{few.num_bytes / 1e6:.1f} MB of JSONL (every n-th line)"
        yield Plan(list(tokenizer_cases(places, few, *other_tokenizers(part, work), most)), options.rounds)


def _size_cases(
    options: argparse.Namespace,
    places: Places,
    contenders: Sequence[Contender],
    one: Corpus,
    peer_workers: Sequence[int],
    bench: Bench,
) -> list[Case]:
    cases = list(builder_cases(places, contenders, one, options.workers, peer_workers))
    if "limits" in options.parts:
        cases += limit_cases(places, one, lambda: bench.ours_bytes(one.name), options.workers)
    if "formats" in options.parts:
        cases += format_cases(places, one, compressed(one, places.work), max(options.workers))
    return cases


def _derived(target: Path, make: Callable[[Path], None]) -> Path:
    make(target)
    return target


def _hidden(options: argparse.Namespace, places: Places, output: Path) -> dict[str, str]:
    """Folders of this machine and what is written in their place, longest first."""
    names: dict[str, str] = {}
    for path, name in (
        (places.work, "WORK"),
        (options.input.parent, "CORPUS"),
        (options.tokenizer.parent, "TOKENIZER"),
        (output.parent, "RESULTS"),
        (options.peers_dir, "PEERS"),
        (ROOT, "."),
        (Path(sys.base_prefix), "PYTHON"),
    ):
        if path is not None:  # as it was typed where that is a path from the root, and as it is
            names |= {str(each): name for each in (path, path.resolve()) if each.is_absolute()}
    names |= {places.peers_python: "PEERS/venv/bin/python", sys.executable: "python"}
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))


def _write(
    output: Path,
    options: argparse.Namespace,
    bench: Bench,
    inputs: Mapping[str, str],
    missing: Mapping[str, str],
    started: str,
    places: Places,
) -> None:
    """The result so far."""
    table = rows(bench.measured, bench.identical)
    found = goals(table, inputs)
    peers = {} if places.peers is None else {name: commit(places.peers / name) for name in ("megatron-lm", "gpt-neox")}
    failed = {" / ".join(map(str, name)): message for name, message in bench.failed.items()}
    here, revision = machine(), commit()
    result = {
        "what": "corpus",
        "date": started,
        "command": bench.shown(shlex.join(["python", "benchmarks/corpus.py", *sys.argv[1:]])),
        "commit": revision,
        "machine": here,
        "versions": versions(PACKAGES),
        "peer_commits": peers,
        "peer_versions": versions(PEER_PACKAGES, places.peers_python),
        "method": METHOD,
        "inputs": dict(inputs),
        "not_installed": dict(missing),
        "failed": failed,
        "commands": bench.commands,
        "goals": [goal._asdict() for goal in found],
        "rows": [row._asdict() for row in table],
        "runs": [
            {"case": " / ".join(map(str, key(one.case))), "round": one.round_number, **one.run._asdict()}
            for one in bench.measured
        ],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# Tokenizing a corpus, {started}",
        "",
        f"{here['cpu']}, {here['cores']} cores, Python {here['python']}; commit {revision}. {METHOD}",
        *(f"\nPeer: {name}, commit {found_commit}." for name, found_commit in peers.items() if found_commit),
        *(f"\nNot installed: {name} ({reason})." for name, reason in missing.items()),
        *(f"\nFailed: {name}." for name in failed),
        *markdown(table, found, inputs),
        "",
        f"Every run, version and command: {output.name}.",
    ]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


METHOD = (
    "Each number is the median of whole processes, from start to exit, run in turn (A B C A B C); the file cache is "
    "warm and earlier writes are on the disk before a run starts. Memory is the largest process's ru_maxrss, or where "
    "several ran at once the largest sum of their PSS, sampled 4 times a second, if that is "
    "more. MB/s counts bytes of JSONL."
)


if __name__ == "__main__":
    sys.exit(main())
