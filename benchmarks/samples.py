"""Serving samples: ours beside megatron-core's GPTDataset and beside the memory's limit, on one made-up dataset.

In: sizes. Out: a table, and a JSON file with every round. The dataset (documents of log-normal lengths, uint16 ids) is
made once in --folder and read into the page cache before anything is measured. Each contender runs in a process of its
own; rounds are interleaved. A round opens the dataset, indexes one epoch, and reads samples in the epoch's own order,
which is random. Every contender reads as its trainer would; what each gives is in the table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machine import command_line, commit, machine, publish, versions

SHARES = (0.98, 0.01, 0.01)
BATCH = 64
EOD = 1


def main() -> int:
    """Measure and report; 0 if it went well."""
    options = parser().parse_args()
    if options.contender is not None:
        print(json.dumps(CONTENDERS[options.contender](options)))
        return 0
    with tempfile.TemporaryDirectory(prefix="samples-") as temporary:
        folder = Path(options.folder or temporary)
        prefix = folder / f"made-up-{options.documents}-{options.tokens}"
        make_dataset(prefix, options.documents, options.tokens)
        names = [name for name in CONTENDERS if name != "mcore" or has_mcore()]
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                rounds[name].append(run_contender(name, prefix, options))
    report = {
        "date": date.today().isoformat(),
        "command": command_line(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(("numpy", "torch", "megatron-core")),
        "dataset": {"documents": options.documents, "tokens": options.tokens, "bytes_a_token": 2},
        "sequence_length": options.length,
        "rounds": rounds,
    }
    publish(report, table(report), options.output)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--documents", type=int, default=2_500_000)
    made.add_argument("--tokens", type=int, default=1_000_000_000)
    made.add_argument("--length", type=int, default=2048, help="tokens of a sample")
    made.add_argument("--samples", type=int, default=100_000, help="samples read in a round (mcore and NumPy: a fifth)")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--folder", help="where the dataset is made and kept; unset: a temporary folder")
    made.add_argument("--output", type=Path, help="JSON file; a .md is written beside it")
    made.add_argument("--contender", help=argparse.SUPPRESS)
    made.add_argument("--prefix", help=argparse.SUPPRESS)
    return made


def make_dataset(prefix: Path, documents: int, tokens: int) -> None:
    """A dataset of `documents` documents and `tokens` tokens, unless it is there; all of it in the page cache."""
    from megagpt.data.indexed import HEADER, MAGIC

    if not prefix.with_suffix(".idx").exists():
        random = np.random.default_rng(0)
        shape = random.lognormal(5.5, 1.0, documents)
        lengths = np.maximum(1, shape * (tokens / shape.sum())).astype(np.int64)
        lengths[: tokens - int(lengths.sum())] += 1  # rounding left a few out
        lengths[-1] += tokens - int(lengths.sum())
        ends = np.cumsum(lengths)
        with prefix.with_suffix(".bin").open("wb") as file:
            for start in range(0, tokens, 1 << 24):
                ids = random.integers(2, 32_000, min(1 << 24, tokens - start), dtype=np.uint16)
                inside = ends[(ends > start) & (ends <= start + len(ids))] - 1 - start
                ids[inside] = EOD
                file.write(ids.tobytes())
        with prefix.with_suffix(".idx").open("wb") as file:
            file.write(HEADER.pack(MAGIC, 1, 8, documents, documents + 1))
            file.write(lengths.astype("<i4").tobytes() + ((ends - lengths) * 2).astype("<i8").tobytes())
            file.write(np.arange(documents + 1, dtype="<i8").tobytes())
    for path in (prefix.with_suffix(".bin"), prefix.with_suffix(".idx")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def has_mcore() -> bool:
    """Whether megatron-core can be imported."""
    return subprocess.run([sys.executable, "-c", "import megatron.core"], capture_output=True).returncode == 0


def run_contender(name: str, prefix: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One round, in a process of its own."""
    sizes = [f"--length={options.length}", f"--samples={options.samples}"]
    command = [sys.executable, __file__, f"--contender={name}", f"--prefix={prefix}", *sizes]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def own_megabytes() -> float:
    """Memory of this process that no file backs."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def rate(read: Callable[[int], object], calls: int, samples_a_call: int) -> float:
    """Samples a second of `calls` calls, after a few that are not counted."""
    for call in range(min(3, calls)):
        read(call)
    started = time.perf_counter()
    for call in range(calls):
        read(call)
    return calls * samples_a_call / (time.perf_counter() - started)


def ours(options: argparse.Namespace, native: bool = True) -> dict[str, Any]:
    """SampleIndex in memory, then from a file; samples alone, and as a trainer's batches."""
    import torch

    from megagpt.data.index_core import index_core, is_native
    from megagpt.data.index_files import IndexStore
    from megagpt.data.indexed import IndexedDataset
    from megagpt.data.samples import SampleIndex
    from megagpt.data.stream import BatchStream
    from megagpt.plan_batches import StepBatch

    if native and not is_native(index_core()):
        raise SystemExit("megagpt.native._samples is not built")
    torch.set_num_threads(1)
    before = own_megabytes()
    started = time.perf_counter()
    dataset = IndexedDataset(options.prefix)
    opened = time.perf_counter()
    samples = SampleIndex(dataset, "train", SHARES, options.length, 1234, native=native)
    samples.open_epoch(0)
    indexed = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = IndexStore(dataset.prefix, dataset.content_hash(), folder, keep_small=True)
        SampleIndex(dataset, "train", SHARES, options.length, 1234, store, native).open_epoch(0)
        mapping = time.perf_counter()
        SampleIndex(dataset, "train", SHARES, options.length, 1234, store, native).open_epoch(0)
        mapped = time.perf_counter()
    count = min(options.samples if native else options.samples // 5, samples.samples_per_epoch) // BATCH
    stream = BatchStream(samples, options.length, EOD, False, 0, 1)
    steps = [StepBatch(n, (count + n) * BATCH % samples.samples_per_epoch, BATCH, BATCH, 1, 0) for n in range(count)]
    return {
        "open_seconds": opened - started,
        "index_seconds": indexed - opened,
        "reopen_seconds": mapped - mapping,
        "index_bytes": store.uses[0].num_bytes,
        "samples_per_second": rate(
            lambda n: samples.tokens_of_many(np.arange(n * BATCH, (n + 1) * BATCH)), count, BATCH
        ),
        "batches_per_second": rate(lambda n: stream.micro_batches(steps[n]), count, BATCH),
        "own_mb": own_megabytes() - before,
    }


def mcore(options: argparse.Namespace) -> dict[str, Any]:
    """GPTDataset of one epoch with a fresh cache folder, then from the cache; one sample a call, as it serves them."""
    warnings.filterwarnings("ignore")
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class NoTokenizer:
        """What GPTDataset asks a tokenizer for."""

        vocab_size, eod, unique_identifiers = 32_000, EOD, {"class": "none"}

    torch.set_num_threads(1)
    before = own_megabytes()
    with tempfile.TemporaryDirectory() as cache:
        config = GPTDatasetConfig(
            random_seed=1234,
            sequence_length=options.length,
            blend=([options.prefix], None),
            split="98,1,1",
            path_to_cache=cache,
            tokenizer=NoTokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        started = time.perf_counter()
        indexed_dataset = IndexedDataset(options.prefix, mmap=True)
        opened = time.perf_counter()
        documents = np.arange(round(len(indexed_dataset) * SHARES[0]), dtype=np.int32)
        arguments = (indexed_dataset, options.prefix, documents, None, Split.train, config)
        dataset = GPTDataset(*arguments)
        indexed = time.perf_counter()
        GPTDataset(*arguments)
        mapped = time.perf_counter()
        size = sum(path.stat().st_size for path in Path(cache).rglob("*.npy"))
        count = min(options.samples // 5, len(dataset))
        served = rate(lambda n: dataset[n], count, 1)
    return {
        "open_seconds": opened - started,
        "index_seconds": indexed - opened,
        "reopen_seconds": mapped - indexed,
        "index_bytes": size,
        "batches_per_second": served,
        "own_mb": own_megabytes() - before,
    }


def limit(options: argparse.Namespace) -> dict[str, Any]:
    """What the memory allows: the same conversion of tokens that lie in order, and copying as many bytes."""
    tokens = np.memmap(f"{options.prefix}.bin", dtype=np.uint16, mode="r")
    width = BATCH * (options.length + 1)
    out = np.empty(width, dtype=np.int64)
    count = min(options.samples // BATCH, len(tokens) // width)
    rate(lambda n: tokens[n * width : (n + 1) * width].max(), count, BATCH)  # maps the pages
    in_order = rate(lambda n: np.copyto(out, tokens[n * width : (n + 1) * width]), count, BATCH)
    block = np.zeros(1 << 25, dtype=np.int64)  # 256 MiB, which no cache holds
    other = np.ones_like(block)
    copies = rate(lambda n: np.copyto(other, block), 8, 1)
    bytes_a_second = copies * 2 * block.nbytes  # read and written
    return {
        "samples_per_second": in_order,
        "copy_gb_per_second": bytes_a_second / 1e9,
        "copy_samples_per_second": bytes_a_second / ((options.length + 1) * (2 + 8)),
    }


CONTENDERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ours": ours,
    "mcore": mcore,
    "ours in NumPy": lambda options: ours(options, native=False),
    "limit": limit,
}


def table(report: dict[str, Any]) -> list[str]:
    """The report in Markdown: medians, and the least and most of the rounds."""
    rounds = report["rounds"]
    size = report["dataset"]
    made_on, packages = report["machine"], report["versions"]
    lines = [
        f"{size['documents']:,} documents, {size['tokens']:,} tokens of 2 bytes in the page cache; samples of "
        f"{report['sequence_length']:,} tokens; one process, one thread; median (least to most) of "
        f"{len(rounds['ours'])} rounds.",
        "",
        f"{report['date']}, commit {report['commit']}, {made_on['cpu']}, {made_on['cores']} cores, "
        f"{made_on['memory_gib']} GiB, {made_on['system']}; "
        + ", ".join(f"{name} {version}" for name, version in packages.items() if version is not None),
        "",
        f"    {report['command']}",
        "",
        "| | open | index an epoch | map a stored index | on disk | samples alone | as micro-batches | own memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("ours", "mcore", "ours in NumPy"):
        if name in rounds:
            runs = rounds[name]
            cells = [_seconds(runs, key) for key in ("open_seconds", "index_seconds", "reopen_seconds")]
            cells.append(f"{runs[0]['index_bytes'] / 1e6:,.2f} MB")
            cells += [_rate(runs, key) for key in ("samples_per_second", "batches_per_second")]
            cells.append(f"{_median(runs, 'own_mb'):,.0f} MB")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    limits = rounds["limit"]
    mine = _median(rounds["ours"], "samples_per_second")
    lines += [
        "",
        f"The limit: the same tokens lying in order are converted to int64 at {_rate(limits, 'samples_per_second')}; "
        f"memory that is copied at {_median(limits, 'copy_gb_per_second'):.1f} GB/s (read and written) moves the bytes "
        f"of {_median(limits, 'copy_samples_per_second'):,.0f} samples/s. Ours, in random order, reach "
        f"{mine / _median(limits, 'samples_per_second'):.0%} of the first and "
        f"{mine / _median(limits, 'copy_samples_per_second'):.0%} of the second.",
    ]
    if "mcore" in rounds:
        batches = _median(rounds["ours"], "batches_per_second") / _median(rounds["mcore"], "batches_per_second")
        index = _median(rounds["mcore"], "index_seconds") / _median(rounds["ours"], "index_seconds")
        lines.append(
            f"Against megatron-core: {batches:.1f} times the samples a second, an index in 1/{index:.1f} the time."
        )
    return lines


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _seconds(runs: list[dict[str, Any]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{statistics.median(values):.3f} s ({min(values):.3f}–{max(values):.3f})"


def _rate(runs: list[dict[str, Any]], key: str) -> str:
    if key not in runs[0]:
        return "–"
    values = [run[key] for run in runs]
    return f"{statistics.median(values):,.0f}/s ({min(values):,.0f}–{max(values):,.0f})"


if __name__ == "__main__":
    sys.exit(main())
