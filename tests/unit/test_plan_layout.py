"""Which layers each chunk holds: equal where they divide, else balanced so that the costliest chunk costs least."""

from itertools import combinations, pairwise

import pytest

from megagpt.config_file import load_config
from megagpt.plan import make_plan
from megagpt.plan_layout import balanced_layers, describe_axes, make_layout


def layers_of(num_layers: int, *arguments: str, head_layers: float = 0.0) -> list[tuple[int, int, int, int]]:
    parallel = load_config(None, list(arguments)).config.parallel
    stages = make_layout(parallel, num_layers, parallel.pipeline, head_layers).stages
    return [(stage.pipeline_rank, stage.chunk, stage.first_layer, stage.num_layers) for stage in stages]


def test_layers_that_divide_are_cut_equally_whatever_the_head_costs():
    assert layers_of(8, "--parallel.pipeline=2", "--parallel.virtual_stages=2", head_layers=3.0) == [
        *((0, 0, 0, 2), (1, 0, 2, 2)),
        *((0, 1, 4, 2), (1, 1, 6, 2)),
    ]


def test_layers_that_do_not_divide_are_balanced_with_the_head_counted():
    assert layers_of(24, "--parallel.pipeline=5", head_layers=1.2) == [
        *((0, 0, 0, 5), (1, 0, 5, 5), (2, 0, 10, 5), (3, 0, 15, 5)),
        (4, 0, 20, 4),
    ]
    assert [stage[3] for stage in layers_of(7, "--parallel.pipeline=3")] == [2, 3, 2], "the embedding's rank has less"


def test_given_layers_are_taken():
    assert [stage[2:] for stage in layers_of(8, "--parallel.pipeline=3", "--parallel.stage_layers=1,5,2")] == [
        *((0, 1), (1, 5)),
        (6, 2),
    ]


@pytest.mark.parametrize("num_layers", range(1, 13))
@pytest.mark.parametrize("head_layers", [0.0, 0.4, 1.0, 2.5, 20.0])
def test_no_other_cut_has_a_cheaper_costliest_chunk(num_layers, head_layers):
    for num_chunks in range(1, num_layers + 1):
        found = balanced_layers(num_layers, num_chunks, head_layers)
        assert sum(found) == num_layers
        assert min(found) >= 1

        def costliest(layers):
            return max([*layers[:-1], layers[-1] + head_layers])

        cuts = ((0, *inner, num_layers) for inner in combinations(range(1, num_layers), num_chunks - 1))
        least = min(costliest([stop - start for start, stop in pairwise(cut)]) for cut in cuts)
        assert costliest(found) == pytest.approx(least)


def test_a_plan_says_which_layers_would_wait_less_for_the_head():
    arguments = ["--parallel.pipeline=4", "--train.batch_ramp_tokens=0"]
    (note,) = make_plan(load_config("gpt3-large", arguments), 4, None).notes
    assert note.startswith("the output head costs as much as 3.1 layers")
    assert note.endswith("with parallel.stage_layers = [7, 7, 7, 3] the slowest chunk is 30% faster")
    balanced = ["--parallel.stage_layers=7,7,7,3"]
    assert make_plan(load_config("gpt3-large", arguments + balanced), 4, None).notes == ()
    assert make_plan(load_config("gpt3-large", ["--train.batch_ramp_tokens=0"]), 4, None).notes == (), "no pipeline"


def test_axes_are_written_with_context_ranks_where_there_are_any():
    assert describe_axes(2, 1, 4, 8) == "tensor 2 × pipeline 4 × data 8"
    assert describe_axes(2, 3, 4, 8) == "tensor 2 × context 3 × pipeline 4 × data 8"
