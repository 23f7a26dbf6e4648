"""One contender of cpu_train.py but ours, in a process of its own: it trains without end and prints a line a step.

    python benchmarks/cpu_contender.py KIND PRECISION MICRO_BATCH LAYERS HEADS HIDDEN LENGTH VOCABULARY

`floor` runs what no trainer can leave out, with torch's own kernels: the step's matrix products, SDPA, fused AdamW.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
import torch.nn.functional as F
from gpu_peers import Shape, batches, make_model

PRECISIONS = ("fp32", "bf16", "bf16-weights")  # bf16: fp32 weights under autocast; the last has no fp32 masters


def main() -> int:
    """Train until the process is ended."""
    kind, precision = sys.argv[1:3]
    micro_batch, *sizes = map(int, sys.argv[3:])
    shape = Shape(*sizes)
    torch.manual_seed(1)
    step = floor(shape, precision, micro_batch) if kind == "floor" else peer(kind, shape, precision, micro_batch)
    number = 0
    while True:
        started = time.perf_counter()
        parts = step()
        number += 1
        print(f"step {number}  {time.perf_counter() - started:.4f} s  {parts}", flush=True)


def peer(kind: str, shape: Shape, precision: str, micro_batch: int) -> Callable[[], str]:
    """`nanogpt` or `huggingface`, with "-eager" (torch's plain AdamW), "-fused" or "-compiled" (both fused AdamW)."""
    name, _, way = kind.partition("-")
    parameters, model = make_model(name, shape, torch.device("cpu"), way == "compiled")
    if precision == "bf16-weights":
        for parameter in parameters:
            parameter.data = parameter.data.bfloat16()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=way != "eager")
    tokens = np.random.default_rng(1).integers(0, shape.vocabulary, 1 << 20).astype(np.uint16)
    data = batches(tokens, micro_batch, shape.length, torch.device("cpu"))

    def step() -> str:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = model(*next(data))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return f"loss {float(loss):.4f}"

    return step


def floor(shape: Shape, precision: str, micro_batch: int) -> Callable[[], str]:
    """Matrix products forward and backward, attention forward and backward, one update; on tensors made before."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    h, tokens = shape.hidden, micro_batch * shape.length

    def random(*sizes: int) -> torch.Tensor:
        return (torch.randn(*sizes) * 0.02).to(dtype)

    sizes = [(h, 3 * h), (h, h), (h, 4 * h), (4 * h, h)] * shape.layers + [(h, shape.vocabulary)]
    weights = [random(outputs, inputs) for inputs, outputs in sizes]
    inputs_of = {width: random(tokens, width) for width in {inputs for inputs, _ in sizes}}
    gradients = {width: random(tokens, width) for width in {outputs for _, outputs in sizes}}
    heads = [random(micro_batch, shape.heads, shape.length, h // shape.heads).requires_grad_() for _ in range(3)]
    gradient = torch.randn_like(heads[0])
    masters = [torch.zeros(outputs, inputs, requires_grad=True) for inputs, outputs in sizes]
    for master in masters:
        master.grad = torch.full_like(master, 1e-3)
    optimizer = torch.optim.AdamW(masters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> str:
        times = [time.perf_counter()]
        with torch.no_grad():
            for (inputs, outputs), weight in zip(sizes, weights, strict=True):
                F.linear(inputs_of[inputs], weight)
                gradients[outputs] @ weight
                gradients[outputs].t() @ inputs_of[inputs]
        times.append(time.perf_counter())
        for _ in range(shape.layers):
            torch.autograd.grad(F.scaled_dot_product_attention(*heads, is_causal=True), heads, gradient)
        times.append(time.perf_counter())
        optimizer.step()
        times.append(time.perf_counter())
        products, attention, update = (after - before for before, after in pairwise(times))
        return f"products {products:.3f} attention {attention:.3f} update {update:.3f}"

    return step


if __name__ == "__main__":
    sys.exit(main())
