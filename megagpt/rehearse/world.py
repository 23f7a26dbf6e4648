"""A world of many ranks made up in one process: torch's fake process group, and tensors with a shape but no values.

In: a layout and a rank. Out: that rank's mesh, as every part of the program sees it. What is replaced while the world
exists stands in `_stand_ins`, each with its reason; all of it is put back at the end.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from megagpt.kernels import cross_entropy, head_chunks, matmul, output_head
from megagpt.model import attention as model_attention
from megagpt.parallel.cpu import patch_deepspeed_for_cpu
from megagpt.parallel.engine import StageModule
from megagpt.parallel.mesh import Mesh, build_mesh, destroy_mesh
from megagpt.plan_layout import Layout

# modules whose globals DeepSpeed fills with the groups of the world it was started in
_DEEPSPEED_STATE = ("deepspeed.comm.comm", "deepspeed.utils.groups", "deepspeed.runtime.zero.partition_parameters")


@contextmanager
def fake_world(layout: Layout, rank: int) -> Iterator[Mesh]:
    """The mesh of one rank of a layout, with every other rank made up: collectives do nothing. Starts no process.

    The process must not have torch.distributed running; afterwards nothing of the world is left in it.
    """
    assert not dist.is_initialized(), "a rehearsal needs a process without process groups"
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda.is_available", return_value=False))  # a GPU, if any, has no part
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(mock.patch.object(sys, "excepthook", sys.excepthook))  # torch puts the rank before errors
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # about packages that are optional, renamings, and settings for GPUs
        dist.init_process_group("fake", rank=rank, world_size=layout.world_size, store=FakeStore())
        try:
            yield build_mesh(layout.tensor, layout.pipeline, layout.virtual_stages, layout.context)
        finally:
            destroy_mesh()


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Every tensor made within has a shape, a dtype and the size of its storage, but no values and no memory."""
    patch_deepspeed_for_cpu()
    with ExitStack() as stack:
        for name in _DEEPSPEED_STATE:
            stack.enter_context(_restored(importlib.import_module(name)))
        for stand_in in _stand_ins():
            stack.enter_context(stand_in)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def _stand_ins() -> list[Any]:
    """What does not work with fake tensors or with made-up ranks, and what a CPU would do in another way than a GPU."""
    coordinator = importlib.import_module("deepspeed.runtime.zero.partitioned_param_coordinator")
    return [
        # nn.Module.to swaps fake tensors and refuses where one has a weak reference; ours are where they belong
        mock.patch.object(StageModule, "to", lambda module, device: module),
        # ZeRO 3 compares its order of modules with rank 0's, of which a made-up rank 0 sends nothing
        mock.patch.object(coordinator, "assert_ints_same_as_other_ranks"),
        # kernels that no CPU has
        mock.patch.object(model_attention, "attention", _attention),
        # nor a library for float32 products that only CPUs have
        mock.patch.object(matmul, "prefers_onednn", return_value=False),
        # the head works in chunks of tokens, and they in blocks of rows, which are larger on a GPU
        *(
            mock.patch.dict(sizes, cpu=sizes["cuda"])
            for sizes in (head_chunks._CHUNK_BYTES, cross_entropy._BLOCK_VALUES, output_head._BLOCK_VALUES)
        ),
    ]


def _attention(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> Tensor:
    """Attention as a GPU's kernels do it: nothing of S x S, neither scores, nor dropout's mask, nor the documents'.

    Without values, dropout and documents change no shape, so they are left out.
    """
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


@contextmanager
def _restored(module: ModuleType) -> Iterator[None]:
    """Puts a module's globals back as they were."""
    before = dict(vars(module))
    try:
        yield
    finally:
        for name in set(vars(module)) - set(before):
            delattr(module, name)
        vars(module).update(before)
