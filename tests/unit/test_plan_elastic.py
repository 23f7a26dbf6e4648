"""The layout that parallel.elastic finds: nearest to the configured one, with the same global batch."""

import pytest

from megagpt.config_file import LoadedConfig, load_config
from megagpt.errors import ConfigError
from megagpt.plan import RunPlan, make_plan
from megagpt.plan_elastic import candidate_changes, nearest_plan
from megagpt.plan_gpus import elastic_memory_gib, plan_on_cluster

SMALL = [
    *("--model.num_layers=4", "--model.num_heads=4", "--model.hidden_size=32", "--model.sequence_length=32"),
    *("--model.vocab_size=256", "--train.batch_tokens=512", "--train.micro_batch_size=4", "--train.precision=fp32"),
]


def plan(num_ranks: int, *arguments: str, elastic: bool = True) -> RunPlan:
    loaded = load_config(None, [*SMALL, f"--parallel.elastic={str(elastic).lower()}", *arguments])
    return make_plan(loaded, num_ranks, None)


def sizes(found: RunPlan) -> tuple[int, int, int, int]:
    layout = found.layout
    return layout.tensor, layout.context, layout.pipeline, layout.data


def test_a_layout_that_works_is_left_alone() -> None:
    asked = ("--parallel.tensor=2", "--parallel.pipeline=2")
    found, plain = plan(8, *asked), plan(8, *asked, elastic=False)
    assert found.layout == plain.layout
    assert found.notes == plain.notes


@pytest.mark.parametrize(
    ("num_ranks", "arguments", "expected"),
    [
        (1, ("--parallel.tensor=2",), (1, 1, 1, 1)),
        (2, ("--parallel.tensor=2", "--parallel.pipeline=2"), (2, 1, 1, 1)),  # tensor ranks stay
        (6, ("--parallel.tensor=2", "--parallel.pipeline=2"), (2, 1, 3, 1)),  # 16 sequences do not divide by 3
        (6, ("--parallel.tensor=2", "--parallel.pipeline=4"), (2, 1, 3, 1)),
        (2, ("--parallel.tensor=2", "--parallel.context=2"), (2, 1, 1, 1)),
        (3, ("--parallel.tensor=2",), (1, 1, 3, 1)),  # no tensor ranks of 3 either: 4 heads
        (8, ("--parallel.zero_stage=3", "--parallel.tensor=16"), (4, 1, 1, 2)),  # ZeRO 3 has no pipeline
    ],
)
def test_the_nearest_layout(num_ranks: int, arguments: tuple[str, ...], expected: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError):
        plan(num_ranks, *arguments, elastic=False)
    found = plan(num_ranks, *arguments)
    assert sizes(found) == expected
    assert found.layout.world_size == num_ranks
    assert found.step_batch(0).num_sequences == 16


def test_what_was_changed_is_said_with_its_reason() -> None:
    found = plan(2, "--parallel.tensor=2", "--parallel.pipeline=2")
    (note,) = found.notes
    assert note.startswith("parallel.elastic: on 2 ranks with parallel.pipeline = 1 instead of 2, as ")
    assert "is 4, which does not divide 2 GPUs" in note
    assert found.origins["parallel.pipeline"] == "parallel.elastic"
    assert found.origins["parallel.tensor"] == "command line"


def test_settings_that_go_with_the_sizes_follow() -> None:
    asked = ("--parallel.tensor=2", "--parallel.sequence_parallel=true")
    found = plan(1, *asked, "--parallel.pipeline=2", "--parallel.virtual_stages=2", "--train.micro_batch_size=2")
    assert not found.layout.sequence_parallel
    assert found.layout.virtual_stages == 1
    layers = plan(2, *asked, "--parallel.pipeline=2", "--parallel.stage_layers=1,3")
    assert layers.layout.uneven_layers is None
    assert layers.layout.sequence_parallel


def test_a_smaller_micro_batch_where_the_configured_one_does_not_divide() -> None:
    assert plan(8).config.train.micro_batch_size == 2
    assert plan(8).step_batch(0).num_micro_batches == 1
    assert plan(4).config.train.micro_batch_size == 4


def test_where_no_layout_works_the_numbers_that_do_are_named() -> None:
    with pytest.raises(ConfigError) as raised:
        plan(7)
    message = str(raised.value)
    assert "finds no layout for 7 ranks with the global batch kept (train.batch_tokens = 512 (command line))" in message
    assert "use 3, 4, 5, 6 or 8 ranks" not in message  # 5 and 7 divide nothing here
    assert "use 2, 3, 4, 6 or 8 ranks" in message


def test_problems_that_no_layout_solves_are_told_as_ever() -> None:
    with pytest.raises(ConfigError, match=r"model.num_heads = 5 \(command line\) does not divide"):
        plan(2, "--model.num_heads=5")


def test_memory_counts_where_the_gpu_is_named() -> None:
    shipped = ["--parallel.elastic=true", "--model.vocab_size=50257"]
    loaded = load_config("gpt3-13b-128xa100-80g", shipped)
    memory_gib = elastic_memory_gib(loaded)
    assert memory_gib == pytest.approx(69.6, abs=0.1)
    assert elastic_memory_gib(load_config("gpt3-13b-128xa100-80g", [])) is None
    found = plan_on_cluster(loaded, 6, None, None)
    assert found.peak_memory.total_bytes / 2**30 < memory_gib
    assert found.layout.world_size == 6


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6, 8, 12, 16])
def test_every_candidate_uses_every_rank(num_ranks: int) -> None:
    loaded = load_config(None, [*SMALL, "--parallel.tensor=2", "--parallel.pipeline=2"])
    seen: list[tuple[int, int]] = []

    def attempt(candidate: LoadedConfig, count: int) -> RunPlan:
        parallel = candidate.config.parallel
        if candidate is not loaded:
            assert count % (parallel.tensor * parallel.context * parallel.pipeline) == 0
        seen.append((parallel.tensor, parallel.pipeline))
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        nearest_plan(loaded, num_ranks, attempt)
    assert len(candidate_changes(loaded, num_ranks)) > 0
    assert len(seen) > len(candidate_changes(loaded, num_ranks))
