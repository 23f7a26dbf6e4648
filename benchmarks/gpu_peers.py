"""What ours is compared with: a plain GPT in the manner of nanoGPT, and Hugging Face's GPT-2, of the same shape.

Both as their users run them: weights in fp32 under bf16 autocast, torch.compile, SDPA, fused AdamW, gradients added up
over micro-batches and clipped. Written for this comparison; nothing of nanoGPT is copied.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shape(NamedTuple):
    """A decoder's sizes."""

    layers: int
    heads: int
    hidden: int
    length: int
    vocabulary: int  # padded: both get the table of ours


class Block(nn.Module):
    """Attention and feed-forward, pre-LayerNorm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(shape.hidden), nn.LayerNorm(shape.hidden)
        self.qkv, self.out = nn.Linear(shape.hidden, 3 * shape.hidden), nn.Linear(shape.hidden, shape.hidden)
        self.up, self.down = nn.Linear(shape.hidden, 4 * shape.hidden), nn.Linear(4 * shape.hidden, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] to [B, S, H]."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """Tied embedding, learned positions; gives the mean loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.positions = nn.Embedding(shape.length, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """[B, S] int64 each."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


Loss = Callable[[Tensor, Tensor], Tensor]  # of tokens and labels


def make_model(kind: str, shape: Shape, device: torch.device, compiled: bool) -> tuple[list[nn.Parameter], Loss]:
    """Parameters of the model `nanogpt` or `huggingface` on the device, and its loss."""
    with device:
        if kind == "nanogpt":
            plain = PlainGPT(shape)
            return list(plain.parameters()), torch.compile(plain) if compiled else plain
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.length,
            n_embd=shape.hidden,
            n_layer=shape.layers,
            n_head=shape.heads,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            use_cache=False,
            attn_implementation="sdpa",
        )
        model = GPT2LMHeadModel(config).train()
    run = torch.compile(model) if compiled else model
    return list(model.parameters()), lambda tokens, _: run(input_ids=tokens, labels=tokens).loss  # it shifts them


def batches(tokens: np.ndarray, size: int, length: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows of the dataset, copied to the device beside its work."""
    random = np.random.default_rng(1234)
    while True:
        starts = random.integers(0, len(tokens) - length - 1, size)
        rows = torch.from_numpy(np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int64))
        if device.type == "cuda":
            rows = rows.pin_memory().to(device, non_blocking=True)
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def train_peer(
    kind: str,
    shape: Shape,
    tokens: np.ndarray,
    micro_batch: int,
    num_micro_batches: int,
    steps: int,
    compiled: bool,
    around: Callable[[int], "nullcontext[None]"],
) -> tuple[list[float], list[float]]:
    """Seconds and loss of every step. `around(step)`: what a step runs in, such as a profiler."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    parameters, model = make_model(kind, shape, device, compiled)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    data = batches(tokens, micro_batch, shape.length, device)
    seconds, losses = [], []
    for step in range(steps):
        with around(step):
            started = time.perf_counter()
            total = torch.zeros((), device=device)
            for _ in range(num_micro_batches):
                with torch.autocast(device.type, torch.bfloat16):
                    loss = model(*next(data)) / num_micro_batches
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(total))  # waits for the device
            seconds.append(time.perf_counter() - started)
    return seconds, losses
