"""Initial weights are a pure function of (seed, global name), the same on every layout, with the paper's deviations."""

import hashlib
import math

import pytest
import torch

from megagpt.model.init import initial_parameter, initialise, local_slice
from megagpt.model.names import parameter_shapes
from megagpt.model.reference import initial_parameters
from tests.unit.model.small import small_spec, whole_chunk

SPEC = small_spec(hidden_size=64, ffn_hidden_size=256, init_std=0.05)
INFOS = parameter_shapes(SPEC)


def test_the_same_whatever_was_drawn_before():
    torch.manual_seed(1)
    first = {name: initial_parameter(SPEC, 3, name, info) for name, info in INFOS.items()}
    torch.manual_seed(2)
    again = {name: initial_parameter(SPEC, 3, name, info) for name, info in reversed(INFOS.items())}
    assert all(torch.equal(first[name], again[name]) for name in INFOS)


def test_the_number_of_layers_changes_only_residual_projections():
    """A name has the same weights in a deeper model, but for the scale of 1 / sqrt(2 * layers)."""
    deeper = small_spec(hidden_size=64, ffn_hidden_size=256, init_std=0.05, num_layers=12)
    for name, info in INFOS.items():
        ours, theirs = (initial_parameter(spec, 3, name, info) for spec in (SPEC, deeper))
        if info.residual:
            torch.testing.assert_close(theirs * 2, ours)  # sqrt(24 / 6)
        else:
            assert torch.equal(ours, theirs), name


def test_names_and_seeds_give_different_weights():
    matrices = {name: info for name, info in INFOS.items() if info.decay}
    drawn = {
        hashlib.sha256(initial_parameter(SPEC, seed, name, info).flatten()[:64].numpy().tobytes()).digest()
        for seed in (0, 1, 2, 1234)
        for name, info in matrices.items()
    }
    assert len(drawn) == 4 * len(matrices)


def test_unrelated_parameters_do_not_correlate():
    one = initial_parameter(SPEC, 1, "layers.0.mlp.up.weight", INFOS["layers.0.mlp.up.weight"])
    two = initial_parameter(SPEC, 1, "layers.1.mlp.up.weight", INFOS["layers.1.mlp.up.weight"])
    three = initial_parameter(SPEC, 2, "layers.0.mlp.up.weight", INFOS["layers.0.mlp.up.weight"])
    for left, right in ((one, two), (one, three)):
        correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.04  # 16,384 values: standard error 0.008


def test_deviations():
    for name, info in INFOS.items():
        values = initial_parameter(SPEC, 5, name, info)
        assert values.shape == info.shape
        assert values.dtype == torch.float32
        if name.endswith("norm.weight"):
            assert torch.equal(values, torch.ones(info.shape))
        elif name.endswith(".bias"):
            assert torch.equal(values, torch.zeros(info.shape))
        else:
            std = 0.05 / math.sqrt(6) if info.residual else 0.05
            margin = 5 * std / math.sqrt(values.numel())  # five standard errors of the mean
            assert values.std().item() == pytest.approx(std, abs=margin), name
            assert values.mean().item() == pytest.approx(0, abs=margin), name
            assert values.abs().max() > 2.5 * std  # not cut off


def test_residual_projections_are_the_two_that_end_a_branch():
    residual = {name.split(".", 2)[2] for name, info in INFOS.items() if info.residual}
    assert residual == {"attention.output.weight", "mlp.down.weight"}


@pytest.mark.parametrize("tensor_size", [1, 2, 4])
def test_slices_concatenate_to_the_whole(tensor_size):
    for name, info in INFOS.items():
        whole = initial_parameter(SPEC, 7, name, info)
        slices = [local_slice(whole, info, rank, tensor_size) for rank in range(tensor_size)]
        if info.split_dim is None:
            assert all(torch.equal(part, whole) for part in slices)
        else:
            assert len({part.shape for part in slices}) == 1
            assert torch.equal(torch.cat(slices, dim=info.split_dim), whole)


def test_a_chunk_is_filled_by_global_name(mesh):
    spec = small_spec()
    wanted = initial_parameters(spec, 9)
    chunk = whole_chunk(spec, mesh, {name: torch.full_like(value, 7) for name, value in wanted.items()})
    torch.manual_seed(0)
    state = torch.get_rng_state()
    initialise(chunk, spec, 9, 0, 1)
    assert torch.equal(torch.get_rng_state(), state), "the default generator must not move"
    found = dict(chunk.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_stream_stays_as_it_is():
    """The first numbers of one weight: an accidental change of the stream would make runs impossible to repeat."""
    name, spec = "layers.1.mlp.up.weight", small_spec()
    found = initial_parameter(spec, 1234, name, parameter_shapes(spec)[name])
    wanted = [0.010003830306231976, 0.025186074897646904, -0.02252349629998207]
    assert found.flatten()[:3].tolist() == pytest.approx(wanted, rel=1e-5)
