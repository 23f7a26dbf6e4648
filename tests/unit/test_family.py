"""The seven models: exactly their published numbers, and built on the meta device with exactly the planned parameters.

On the meta device a tensor has a shape and no storage, so all of gpt3-175b is built here. Layouts with many ranks are
built by one process in torch's fake process group, whose collectives do nothing.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod

import pytest
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from megagpt.config_file import load_config
from megagpt.model.context import StageBuild
from megagpt.model.cost import flops_per_token
from megagpt.model.gpt import GPTChunk
from megagpt.model.names import TOKEN_EMBEDDING, local_shape, parameter_shapes
from megagpt.parallel.mcore_config import make_mcore_config
from megagpt.parallel.mesh import Mesh, build_mesh, destroy_mesh
from megagpt.plan import RunPlan, make_plan
from tests.unit.model.small import random_batch, random_parameters, small_spec, whole_chunk

# the model card and Brown et al. 2020, table 2.1: layers, heads, d_model, peak learning rate, batch in tokens, and the
# parameters with GPT-2's 50,257 ids padded to 50,304, from 12 L d² + 13 L d + (50304 + 2048 + 2) d
FAMILY = {
    "gpt3-base": (12, 12, 768, 6.0e-4, 524_288, 125_262_336),
    "gpt3-large": (24, 16, 1024, 3.0e-4, 524_288, 355_919_872),
    "gpt3-1.3b": (24, 32, 2048, 2.0e-4, 2_097_152, 1_315_819_520),
    "gpt3-2.7b": (32, 32, 2560, 1.6e-4, 2_097_152, 2_651_673_600),
    "gpt3-13b": (40, 40, 5120, 1.0e-4, 6_291_456, 12_853_626_880),
    "gpt3-30b": (48, 56, 7168, 1.0e-4, 6_291_456, 29_974_755_328),
    "gpt3-175b": (96, 96, 12288, 1.2e-4, 6_291_456, 174_604_836_864),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_numbers_of_the_family(name):
    layers, heads, hidden, lr, batch_tokens, _ = FAMILY[name]
    config = load_config(name, []).config
    model, train = config.model, config.train
    assert (model.num_layers, model.num_heads, model.hidden_size) == (layers, heads, hidden)
    assert (train.lr, train.batch_tokens) == (lr, batch_tokens)
    spec = model_plan(name).spec
    assert (spec.name, spec.sequence_length, spec.ffn_hidden_size) == (name, 2048, 4 * hidden)
    assert (spec.vocab_size, spec.padded_vocab_size) == (50_257, 50_304)
    assert (spec.activation, spec.layer_norm_epsilon, spec.init_std) == ("gelu_tanh", 1e-5, 0.02)


def model_plan(name: str, *arguments: str) -> RunPlan:
    """The plan on one replica's GPUs."""
    loaded = load_config(name, list(arguments))
    parallel = loaded.config.parallel
    return make_plan(loaded, parallel.tensor * parallel.pipeline, None)


def built_on_one_rank(plan: RunPlan, pipeline_rank: int, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of one pipeline rank's chunks, built on the meta device."""
    train, layout = plan.config.train, plan.layout
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        mcore = make_mcore_config(plan.spec, mesh, train.precision, layout.sequence_parallel, layout.virtual_stages)
        mcore.use_cpu_initialization = True  # then mcore names no device, and gets the meta device
        build = StageBuild(plan.spec, mesh, mcore, train.recompute)
        for stage in layout.chunks(pipeline_rank):
            for name, parameter in GPTChunk(build, stage).named_parameters():
                assert parameter.is_meta, name
                assert name not in shapes
                shapes[name] = tuple(parameter.shape)
    return shapes


@contextmanager
def fake_mesh(plan: RunPlan, rank: int) -> Iterator[Mesh]:
    """The mesh as one rank of a layout sees it, with every other rank made up."""
    layout = plan.layout
    dist.init_process_group("fake", rank=rank, world_size=layout.world_size, store=FakeStore())
    try:
        mesh = build_mesh(layout.tensor, layout.pipeline, layout.virtual_stages)
        assert (mesh.tensor_size, mesh.pipeline_size) == (layout.tensor, layout.pipeline)
        yield replace(mesh, device=torch.device("meta"))
    finally:
        destroy_mesh()


@pytest.mark.parametrize("name", FAMILY)
def test_parameters_as_built_are_those_planned(name):
    """The whole model as one chunk: every name, every shape, and the exact count, the tied table once."""
    plan = model_plan(name, "--parallel.tensor=1", "--parallel.pipeline=1", "--parallel.sequence_parallel=false")
    with fake_mesh(plan, 0) as mesh:
        built = built_on_one_rank(plan, 0, mesh)
    assert built == {name: info.shape for name, info in parameter_shapes(plan.spec).items()}
    count = sum(map(prod, built.values()))
    assert count == FAMILY[name][5] == plan.parameters.total
    assert plan.parameters.per_rank == (count,)
    assert plan.parameters.without_padding == count - (50_304 - 50_257) * plan.spec.hidden_size
    assert sum(1 for built_name in built if "embedding.tokens" in built_name or "head" in built_name) == 1


LAYOUTS = [
    *((name, ()) for name in FAMILY),
    ("gpt3-1.3b", ("--parallel.pipeline=4", "--parallel.tensor=2")),
    ("gpt3-2.7b", ("--parallel.pipeline=4", "--parallel.virtual_stages=2")),
    ("gpt3-175b", ("--parallel.virtual_stages=2",)),
]


@pytest.mark.parametrize(
    ("name", "arguments"), LAYOUTS, ids=lambda value: value if isinstance(value, str) else "".join(value)
)
def test_every_rank_of_a_layout_builds_what_is_planned(name, arguments):
    """All pipeline ranks, first and last tensor rank: slices' shapes, planned counts, and every parameter somewhere."""
    plan = model_plan(name, *arguments)
    layout, infos = plan.layout, parameter_shapes(plan.spec)
    seen: Counter[str] = Counter()
    total = 0
    for pipeline_rank in range(layout.pipeline):
        for tensor_rank in {0, layout.tensor - 1}:
            with fake_mesh(plan, pipeline_rank * layout.tensor + tensor_rank) as mesh:
                assert (mesh.pipeline_rank, mesh.tensor_rank) == (pipeline_rank, tensor_rank)
                built = built_on_one_rank(plan, pipeline_rank, mesh)
            assert built == {built_name: local_shape(infos[built_name], layout.tensor) for built_name in built}
            assert sum(map(prod, built.values())) == plan.parameters.per_rank[pipeline_rank]
        seen.update(built.keys())
        total += sum(prod(infos[built_name].shape) for built_name in built)
    assert seen.keys() == infos.keys()
    twice = {built_name for built_name, count in seen.items() if count > 1}
    assert twice == ({TOKEN_EMBEDDING} if layout.pipeline > 1 else set())
    tied_copy = prod(infos[TOKEN_EMBEDDING].shape) if layout.pipeline > 1 else 0
    assert total - tied_copy == FAMILY[name][5]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    yield build_mesh(1, 1)
    destroy_mesh()


def counted_flops(mesh: Mesh, recompute: str, size: int) -> int:
    """What torch counts in one forward and backward pass.

    FlopCounterMode counts matrix products (mm, addmm, bmm) as two operations a multiply-add and nothing else: no norm,
    GELU, softmax or optimizer. Attention runs through SDPA's "math" form, whose two products over the whole S x S
    matrix, masked half included, it can see; the CPU's flash kernel it counts as nothing.
    """
    spec = small_spec()
    chunk = whole_chunk(spec, mesh, random_parameters(spec), recompute)
    batch = random_batch(spec, 0, size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        chunk(batch, None, None).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [1, 3])
def test_flops_a_token_are_those_that_torch_counts(mesh, size):
    spec = small_spec()
    assert counted_flops(mesh, "none", size) == flops_per_token(spec).total * size * spec.sequence_length


def test_recomputation_is_not_counted_in_the_models_flops(mesh):
    """Full recomputation runs every layer's forward pass, a third of its FLOPs, once more. Selective runs the scores'
    product alone: torch stops recomputing at the last tensor that the backward pass needs, the probabilities.
    """
    spec = small_spec()
    flops, tokens = flops_per_token(spec), 2 * spec.sequence_length
    assert counted_flops(mesh, "full", 2) == (flops.total + (flops.layers + flops.attention) // 3) * tokens
    assert counted_flops(mesh, "selective", 2) == (flops.total + flops.attention // 6) * tokens
