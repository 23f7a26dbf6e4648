"""Names, shapes and splits of parameters: written out once more, and what must hold on every number of ranks."""

from math import prod

import pytest

from megagpt.errors import CheckpointError
from megagpt.model.names import local_shape, parameter_shapes
from megagpt.model.spec import ModelSpec
from tests.unit.model.small import DEFAULTS, small_spec

# name within a layer: shape with H = 32 and F = 80, dim cut over tensor ranks, weight decay, residual projection
LAYER = [
    ("attention_norm.weight", (32,), None, False, False),
    ("attention_norm.bias", (32,), None, False, False),
    ("attention.qkv.weight", (96, 32), 0, True, False),
    ("attention.qkv.bias", (96,), 0, False, False),
    ("attention.output.weight", (32, 32), 1, True, True),
    ("attention.output.bias", (32,), None, False, False),
    ("mlp_norm.weight", (32,), None, False, False),
    ("mlp_norm.bias", (32,), None, False, False),
    ("mlp.up.weight", (80, 32), 0, True, False),
    ("mlp.up.bias", (80,), 0, False, False),
    ("mlp.down.weight", (32, 80), 1, True, True),
    ("mlp.down.bias", (32,), None, False, False),
]


def test_every_parameter_in_the_order_of_the_forward_pass():
    wanted = [
        ("embedding.tokens.weight", (128, 32), 0, True, False),
        ("embedding.positions.weight", (24, 32), None, True, False),
        *((f"layers.{number}.{name}", *rest) for number in range(3) for name, *rest in LAYER),
        ("final_norm.weight", (32,), None, False, False),
        ("final_norm.bias", (32,), None, False, False),
    ]
    assert [(name, *info) for name, info in parameter_shapes(small_spec()).items()] == wanted


def test_layers_stand_in_the_order_of_numbers_and_not_of_text():
    names = list(parameter_shapes(small_spec(num_layers=12)))
    numbers = [int(name.split(".")[1]) for name in names if name.startswith("layers.")]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 11


@pytest.mark.parametrize("tensor_ranks", [1, 2, 4])
def test_slices_of_all_tensor_ranks_make_the_whole(tensor_ranks):
    for name, info in parameter_shapes(small_spec()).items():
        local = local_shape(info, tensor_ranks)
        copies = 1 if info.split_dim is None else tensor_ranks
        assert prod(local) * copies == prod(info.shape), name
        assert local == tuple(
            size // tensor_ranks if dim == info.split_dim else size for dim, size in enumerate(info.shape)
        )


def test_what_does_not_split_is_our_mistake():
    info = parameter_shapes(small_spec())["layers.0.attention.qkv.weight"]
    with pytest.raises(AssertionError, match=r"\(96, 32\) does not split over 5 tensor ranks"):
        local_shape(info, 5)


def test_decay_is_for_matrices_alone():
    for name, info in parameter_shapes(small_spec()).items():
        assert info.decay == (len(info.shape) == 2), name


def test_spec_round_trip():
    spec = small_spec()
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert spec.head_dim == 8


def test_spec_names_what_is_missing_and_what_is_unknown():
    values = dict(DEFAULTS)
    del values["num_heads"]
    values["num_head"] = 4
    with pytest.raises(CheckpointError, match=r"missing keys \['num_heads'\] and unknown keys \['num_head'\]"):
        ModelSpec.from_dict(values)


@pytest.mark.parametrize("values", [{"num_heads": 5}, {"padded_vocab_size": 99}])
def test_a_spec_that_cannot_be_is_our_mistake(values):
    with pytest.raises(AssertionError):
        small_spec(**values)
