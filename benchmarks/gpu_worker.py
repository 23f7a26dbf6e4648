"""One measurement of the GPU suite, in a process of its own. In: a Case as JSON. Out: its result as JSON, last line.

Ours is the real program, `megagpt train` with its data path, loop and optimizer; only the checkpoint at its end is left
out. Peers are those of gpu_peers.py. The last step is profiled and not counted.
"""

import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from gpu_cases import Case, ours_arguments, plan_of

OUT_OF_MEMORY = "out of memory"


def main() -> int:
    """Measure; 0 also where the device's memory did not suffice."""
    request = json.loads(sys.argv[1])
    case = Case(*request["case"][:4], tuple(request["case"][4]), request["case"][5])
    measure = {"ours": ours, "ceiling": ceiling}.get(case.kind, peer)
    try:
        found = measure(case, request)
    except torch.OutOfMemoryError as error:
        found = {"failed": OUT_OF_MEMORY, "words": str(error).splitlines()[0]}
    if torch.cuda.is_available():
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    print(json.dumps(found))
    return 0


def ours(case: Case, request: dict[str, Any]) -> dict[str, Any]:
    """Train with the real program."""
    from megagpt.training import cli, recorder, session

    breakdown: dict[str, float] = {}
    last = case.steps - 1

    class ProfilingRecorder(recorder.Recorder):
        """Knows where steps begin and end."""

        _stack = contextlib.ExitStack()
        _begun = 0

        def start_step(self) -> None:
            if self._begun == last and request["breakdown"]:
                self._stack.enter_context(_breakdown(breakdown))
            self._begun += 1
            super().start_step()

        def end_step(self, *arguments: Any, **named: Any) -> None:
            super().end_step(*arguments, **named)
            self._stack.close()

    with tempfile.TemporaryDirectory(prefix="gpu-suite-") as temporary:
        folder = Path(temporary) / "run"
        arguments = ours_arguments(case, str(folder), request["data"])
        with patch.object(session, "Recorder", ProfilingRecorder), patch.object(session, "Saver", _NoSaver):
            status = cli.main(arguments)
        if status:
            raise SystemExit(f"megagpt train ended with status {status}: {' '.join(arguments)}")
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "seconds_per_step" in record]
    return {
        "seconds": [record["seconds_per_step"] for record in steps][: None if not request["breakdown"] else -1],
        "losses": [record["loss"] for record in steps],
        "breakdown": breakdown,
        "arguments": arguments,
    }


class _NoSaver:
    """In the place of the Saver: a benchmark has no use for a checkpoint of 32 GB."""

    def __init__(self, *_: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def peer(case: Case, request: dict[str, Any]) -> dict[str, Any]:
    """Train a peer of the same shape on the same tokens."""
    from gpu_peers import Shape, train_peer

    from megagpt.data.indexed import IndexedDataset

    plan = plan_of(case.size, case.arguments, case.micro_batch)
    spec = plan.spec
    shape = Shape(spec.num_layers, spec.num_heads, spec.hidden_size, spec.sequence_length, spec.padded_vocab_size)
    dataset = IndexedDataset(Path(request["data"]) / "corpus")
    tokens = dataset.tokens(0, dataset.num_tokens)
    breakdown: dict[str, float] = {}

    def around(step: int) -> Any:
        wanted = request["breakdown"] and step == case.steps - 1
        return _breakdown(breakdown) if wanted else contextlib.nullcontext()

    count = plan.batches.stages[-1].num_micro_batches
    sizes = (case.micro_batch, count, case.steps)
    seconds, losses = train_peer(case.kind, shape, tokens, *sizes, request["compile"], around)
    return {"seconds": seconds[: None if not request["breakdown"] else -1], "losses": losses, "breakdown": breakdown}


def ceiling(case: Case, request: dict[str, Any]) -> dict[str, Any]:
    """TFLOP/s of one large product of random matrices in bf16, and where the device has it in float8."""
    del request
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = case.micro_batch  # of the square matrices
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = {"bf16": _rate(lambda: left @ right.t(), size, case.steps)}
    from megagpt.errors import ConfigError
    from megagpt.kernels.float8 import FORWARD, check_float8

    try:
        check_float8(device)
    except ConfigError:
        return {"tflops": found}
    one = torch.ones((), device=device)
    first, second = (matrix.to(FORWARD) for matrix in (left, right))
    scales: dict[str, Any] = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16, "use_fast_accum": True}
    found["fp8"] = _rate(lambda: torch._scaled_mm(first, second.t(), **scales), size, case.steps)
    return {"tflops": found}


def _rate(product: Any, size: int, rounds: int) -> list[float]:
    """TFLOP/s of each round, a few products long, after one that warms up."""
    rates = []
    for _ in range(rounds + 1):
        _wait()
        started = time.perf_counter()
        for _ in range(10):
            product()
        _wait()
        rates.append(10 * 2 * size**3 / (time.perf_counter() - started) / 1e12)
    assert all(math.isfinite(rate) for rate in rates), rates
    return rates[1:]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _breakdown(found: dict[str, float]) -> Iterator[None]:
    from gpu_breakdown import profiled

    with profiled(found):
        yield


if __name__ == "__main__":
    sys.exit(main())
