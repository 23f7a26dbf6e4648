"""The shards of all ranks are the whole model, for every shipped size and layout; a sabotaged shard is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from megagpt.config_file import load_config
from megagpt.errors import TrainingError
from megagpt.model import init
from megagpt.model.names import parameter_shapes
from megagpt.plan import RunPlan, make_plan
from megagpt.plan_gpus import plan_on_cluster
from megagpt.plan_shipped import ROOT, shipped_runs
from megagpt.rehearse import slices
from megagpt.rehearse.coverage import Coverage, check_coverage
from megagpt.rehearse.slices import Slice, model_places, slices_of_place
from megagpt.rehearse.world import fake_world
from tests.unit.test_family import FAMILY

SMALL = [
    *("--model.num_layers=4", "--model.num_heads=4", "--model.hidden_size=32", "--model.sequence_length=16"),
    *("--model.vocab_size=100", "--train.batch_tokens=512", "--train.warmup_tokens=0"),
]


def small_plan(*arguments: str, gpus: int = 8) -> RunPlan:
    return make_plan(load_config(None, [*SMALL, *arguments]), gpus, None)


def all_slices(plan: RunPlan) -> list[Slice]:
    return [part for place in model_places(plan) for part in slices_of_place(plan, place)]


def checked(plan: RunPlan, parts: list[Slice]) -> Coverage:
    return check_coverage(parameter_shapes(plan.spec), parts, plan.layout.tensor, plan.layout.pipeline)


def shipped_layouts() -> dict[str, RunPlan]:
    """Every layout of a size that is shipped, once, under the name of the first file that has it."""
    plans: dict[tuple[object, ...], tuple[str, RunPlan]] = {}
    for path in [*sorted((ROOT / "configs" / "models").glob("*.toml")), *shipped_runs()]:
        loaded = load_config(str(path), [])
        parallel = loaded.config.parallel
        ranks = None if loaded.config.cluster.num_gpus else parallel.tensor * parallel.context * parallel.pipeline
        plan = plan_on_cluster(loaded, ranks, None, None)
        plans.setdefault((plan.spec, plan.layout.tensor, plan.layout.stages), (Path(path).stem, plan))
    return dict(plans.values())


LAYOUTS = shipped_layouts()


def test_every_size_is_among_the_shipped_layouts():
    assert {plan.spec.name for plan in LAYOUTS.values()} == set(FAMILY)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_shards_of_every_shipped_layout_are_the_whole_model(name):
    plan = LAYOUTS[name]
    coverage = checked(plan, all_slices(plan))
    assert coverage.model == FAMILY[plan.spec.name][5] == plan.parameters.total
    assert coverage.held == coverage.model + coverage.tensor_copies + coverage.tied_copies
    assert coverage.by_position == tuple((size,) * plan.layout.tensor for size in plan.parameters.per_rank)
    assert (coverage.tied_copies > 0) == (plan.layout.pipeline > 1)


def test_uneven_stages_and_context_ranks_are_covered():
    plan = small_plan("--parallel.pipeline=4", "--parallel.stage_layers=[1,1,1,1]", "--parallel.context=2")
    assert checked(plan, all_slices(plan)).model == plan.parameters.total
    plan = small_plan("--parallel.pipeline=2", "--parallel.stage_layers=[3,1]", "--parallel.tensor=2")
    assert checked(plan, all_slices(plan)).model == plan.parameters.total


def test_places_are_those_of_the_mesh():
    plan = small_plan("--parallel.tensor=2", "--parallel.pipeline=2", "--parallel.context=2", gpus=16)
    for place in model_places(plan):
        with fake_world(plan.layout, place.rank) as mesh:
            assert (mesh.rank, mesh.tensor_rank, mesh.pipeline_rank) == place
            assert (mesh.data_rank, mesh.context_rank) == (0, 0)


def test_a_slice_that_every_rank_fills_alike_is_missing_and_doubled(monkeypatch):
    """The initialisation is sabotaged: each tensor rank takes the first slice."""
    plan = small_plan("--parallel.tensor=2")
    real = init.local_slice

    def first(parameter, info, tensor_rank, tensor_size):
        return real(parameter, info, 0, tensor_size)

    monkeypatch.setattr(init, "local_slice", first)
    with pytest.raises(TrainingError) as raised:
        # the token table's rows are compared with those of the forward pass before that
        all_slices(plan)
    assert str(raised.value) == (
        "embedding.tokens.weight on rank 1 (tensor 1, pipeline 0) holds rows 0 to 63, but the forward pass looks up "
        "rows 64 to 127 there"
    )
    monkeypatch.setattr(slices, "_check_table_rows", lambda chunk, parts: None)
    with pytest.raises(TrainingError) as raised:
        checked(plan, all_slices(plan))
    message = str(raised.value)
    assert message.startswith("the ranks' shards are not the whole model:\n  embedding.tokens.weight: rows 0 to 63")
    where = "rank 0 (tensor 0, pipeline 0) and on rank 1 (tensor 1, pipeline 0)"
    assert f"layers.0.attention.qkv.weight: rows 0 to 47 of (96, 32) are on {where}" in message
    assert "layers.0.attention.qkv.weight: rows 48 to 95 of (96, 32) are on no rank" in message
    assert "layers.0.attention.output.weight: columns 16 to 31 of (32, 32) are on no rank" in message
    assert "more" in message.splitlines()[-1]


def test_a_layer_that_no_stage_has_or_two_have_is_named():
    plan = small_plan("--parallel.pipeline=2", "--parallel.tensor=2")
    first, last = plan.layout.stages
    shorter = replace(plan, layout=replace(plan.layout, stages=(first, replace(last, num_layers=1))))
    with pytest.raises(TrainingError, match=r"layers\.3\.attention_norm\.weight of \(32,\) is on no rank"):
        checked(plan, all_slices(shorter))
    longer = replace(plan, layout=replace(plan.layout, stages=(replace(first, num_layers=3), last)))
    with pytest.raises(
        TrainingError,
        match=r"layers\.2\.attention\.qkv\.weight, rows 0 to 47 is on rank 4 \(tensor 0, pipeline 1\) and on rank 0",
    ):
        checked(plan, all_slices(longer))


def sabotaged(parts: list[Slice], name: str, rank: int, **changes: tuple[int, ...]) -> list[Slice]:
    """One rank's slice of one parameter changed; without changes, left out."""
    found = next(part for part in parts if part.name == name and part.place.rank == rank)
    others = [part for part in parts if part is not found]
    return [*others, replace(found, **changes)] if changes else others


def test_each_kind_of_wrong_shard_is_named():
    plan = small_plan("--parallel.pipeline=2", "--parallel.tensor=2")
    parts = all_slices(plan)
    up, norm, table = "layers.2.mlp.up.weight", "layers.1.mlp_norm.weight", "embedding.tokens.weight"
    for wrong, words in (
        (sabotaged(parts, up, 5), f"{up} is on tensor ranks [0] of pipeline rank 1, but not on tensor ranks [1]"),
        (sabotaged(parts, up, 5), f"{up}: rows 64 to 127 of (128, 32) are on no rank"),
        (sabotaged(parts, up, 5, start=(60, 0)), f"{up}: rows 60 to 63 of (128, 32) are on rank 4 (tensor 0, pipeline"),
        (sabotaged(parts, up, 5, start=(66, 0)), f"{up}: rows 64 to 65 of (128, 32) are on no rank"),
        (
            sabotaged(parts, up, 5, stop=(128, 31)),
            f"{up}, rows 64 to 127 on rank 5 (tensor 1, pipeline 1) is not whole",
        ),
        (sabotaged(parts, norm, 1), f"{norm} is on tensor ranks [0] of pipeline rank 0, but not on tensor ranks [1]"),
        ([*parts, parts[0]], "is on tensor ranks [0, 0, 1] of pipeline rank 0, more than once"),
        (
            [*parts, replace(parts[0], name="bias")],
            "bias on rank 0 (tensor 0, pipeline 0) is no parameter of the model",
        ),
        (
            [part for part in parts if (part.name, part.place.pipeline_rank) != (table, 1)],
            f"{table} is on pipeline ranks [0], but should be on [0, 1]",
        ),
    ):
        with pytest.raises(TrainingError) as raised:
            checked(plan, wrong)
        assert words in str(raised.value)


def test_a_parameter_that_is_not_filled_or_not_by_a_slice_is_named(monkeypatch):
    plan = small_plan()
    monkeypatch.setattr(slices.build, "initialise", lambda *arguments: None)
    with pytest.raises(TrainingError, match=r"embedding\.tokens\.weight of \(128, 32\) on rank 0 .* is never filled"):
        all_slices(plan)
    monkeypatch.undo()
    monkeypatch.setattr(init, "local_slice", lambda parameter, *rest: parameter[:1])
    with pytest.raises(TrainingError, match=r"is filled from a part of \(1, 32\), with .*: that is not a slice of it"):
        all_slices(plan)
