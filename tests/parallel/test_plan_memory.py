"""The activation formula of the plan against the bytes that autograd saves for one decoder layer."""

import pytest
import torch

from megagpt.config_file import load_config
from megagpt.model.context import LayerContext, StageBuild
from megagpt.model.layer import DecoderLayer
from megagpt.parallel.mcore_config import make_mcore_config
from megagpt.parallel.mesh import build_mesh
from megagpt.plan import make_plan
from megagpt.plan_memory import layer_activation_bytes
from tests.parallel.harness import run_ranks

LENGTH, BATCH, HIDDEN = 128, 2, 256
MODEL = [
    *("--model.num_layers=2", "--model.num_heads=8", f"--model.hidden_size={HIDDEN}"),
    *(f"--model.sequence_length={LENGTH}", "--model.vocab_size=1024", "--train.warmup_tokens=0"),
]


def saved_and_estimated_bytes(tensor_ranks: int, arguments: list[str]) -> tuple[float, int]:
    """Bytes a token on this rank: saved by a layer's forward pass, and by the formula. Runs on every rank."""
    plan = make_plan(load_config(None, [*MODEL, f"--parallel.tensor={tensor_ranks}", *arguments]), tensor_ranks, None)
    train, layout = plan.config.train, plan.layout
    mesh = build_mesh(tensor_ranks, 1)
    mcore = make_mcore_config(plan.spec, mesh, train.precision, layout.sequence_parallel, 1)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[train.precision]
    layer = DecoderLayer(StageBuild(plan.spec, mesh, mcore, train.recompute, float8=train.fp8)).to(dtype).train()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, torch.Tensor] = {}  # one a storage, held so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    length = LENGTH // tensor_ranks if layout.sequence_parallel else LENGTH
    hidden = torch.randn(length, BATCH, HIDDEN, dtype=dtype, requires_grad=True)
    seed = 5 if plan.spec.hidden_dropout > 0 else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(hidden, LayerContext(dropout_seed=seed))
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return saved / (LENGTH * BATCH), layer_activation_bytes(plan.spec, layout, train)


@pytest.mark.parametrize("tensor_ranks", [1, 2])
@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_of_a_layer(tensor_ranks, recompute, precision, dropout):
    arguments = [
        f"--train.recompute={recompute}",
        f"--train.precision={precision}",
        f"--model.hidden_dropout={dropout}",
    ]
    if tensor_ranks > 1:
        arguments.append("--parallel.sequence_parallel=true")
    for saved, estimated in run_ranks(tensor_ranks, saved_and_estimated_bytes, tensor_ranks, arguments):
        # the mean and deviation of each norm, 16 bytes a token, are left out; measured worst 0.16 %
        assert saved == pytest.approx(estimated, rel=0.002)


@pytest.mark.parametrize("tensor_ranks", [1, 2])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_activations_of_a_layer_in_float8(tensor_ranks, sequence_parallel):
    arguments = [
        "--train.fp8=true",
        f"--parallel.sequence_parallel={str(sequence_parallel and tensor_ranks > 1).lower()}",
    ]
    for saved, estimated in run_ranks(tensor_ranks, saved_and_estimated_bytes, tensor_ranks, arguments):
        assert saved == pytest.approx(estimated, rel=0.002)


def test_tensor_parallel_without_sequence_parallel():
    for saved, estimated in run_ranks(2, saved_and_estimated_bytes, 2, ["--train.precision=bf16"]):
        assert saved == pytest.approx(estimated, rel=0.002)
