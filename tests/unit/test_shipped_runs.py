"""Every run in configs/runs: the plan takes it, it fits its GPUs with the margin, and its layout is meant for speed.

What follows from the runs, DeepSpeed's JSON and the table in docs/running.md, is what they come to now.
"""

from pathlib import Path

import pytest

from megagpt.config_file import LoadedConfig, load_config, shipped_names
from megagpt.plan import RunPlan
from megagpt.plan_gpus import GPU_TYPES, GpuType, find_gpu, fits, plan_on_cluster
from megagpt.plan_schedule import ideal_bubble, pass_costs, plan_timeline
from megagpt.plan_shipped import ROOT, TABLE_BEGIN, TABLE_END, deepspeed_json, rewrite, shipped_runs, table_row
from tests.unit.test_family import FAMILY

RUNS = [path.stem for path in shipped_runs()]
MOST_BUBBLE = 0.10


def planned(name: str) -> tuple[LoadedConfig, RunPlan, GpuType]:
    loaded = load_config(name, [])
    gpu = find_gpu(loaded)
    assert gpu is not None
    return loaded, plan_on_cluster(loaded, None, None, None), gpu


def of_model(model: str, gpu: str) -> list[int]:
    """Numbers of GPUs of the runs of a model on a type of GPU."""
    configs = [load_config(name, []).config for name in RUNS]
    return [c.cluster.num_gpus or 0 for c in configs if c.model.name == model and c.cluster.gpu == gpu]


@pytest.mark.parametrize("model", FAMILY)
def test_every_size_has_a_run_on_one_node_and_on_a_cluster_of_each_type(model):
    for gpu in GPU_TYPES:
        numbers = of_model(model, gpu.name)
        assert [number for number in numbers if number > gpu.gpus_per_node], (model, gpu.name)
    on_a_node = [8] if model != "gpt3-175b" else []
    assert [number for number in of_model(model, "A100-80G") if number == 8] == on_a_node


def test_175b_fits_on_no_single_node():
    """18 bytes a parameter for weights, gradients and optimizer: 2.9 TiB, where 8 GPUs of 139.7 GiB have 1.1."""
    loaded = load_config("gpt3-175b-1024xh200", [])
    state = 18 * plan_on_cluster(loaded, None, None, None).parameters.total
    assert state > 8 * max(gpu.memory_gib for gpu in GPU_TYPES) * 2**30


@pytest.mark.parametrize("name", RUNS)
def test_a_shipped_run(name):
    loaded, plan, gpu = planned(name)
    config, layout = plan.config, plan.layout
    model = config.model.name
    assert name == f"{model}-{config.cluster.num_gpus}x{gpu.name.lower()}"
    assert (config.run.name, config.run.folder) == (name, f"runs/{name}")
    assert name in shipped_names()
    assert fits(plan, gpu)
    assert layout.world_size == config.cluster.num_gpus
    assert layout.tensor * layout.context * layout.pipeline * layout.data == layout.world_size
    assert layout.world_size % gpu.gpus_per_node == 0
    assert layout.tensor <= gpu.gpus_per_node
    assert layout.sequence_parallel == (layout.tensor > 1)
    sizes = (layout.pipeline, layout.virtual_stages, plan.batches.stages[-1].num_micro_batches)
    assert ideal_bubble(*sizes) < MOST_BUBBLE
    assert plan_timeline(*sizes, pass_costs(plan.spec, layout, config.train)).bubble < MOST_BUBBLE
    # matrices of more values than 2^31 are best left alone
    rows = config.train.micro_batch_size * plan.spec.sequence_length
    assert rows * plan.spec.padded_vocab_size // layout.tensor < 2**31
    assert not plan.notes
    # the model's own values stay: only layout, micro-batch and the ramp's start are the run's
    own = {key for key, origin in loaded.origins.items() if origin == f"configs/runs/{name}.toml"}
    assert own <= {
        *("run.name", "run.folder", "cluster.gpu", "cluster.num_gpus"),
        *("train.micro_batch_size", "train.recompute", "train.batch_ramp_start_tokens"),
        *(f"parallel.{key}" for key in ("tensor", "pipeline", "virtual_stages", "sequence_parallel", "zero_stage")),
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_ramp_starts_as_early_as_the_layout_allows(name):
    """The recipe's 32,768 tokens, or what data ranks and interleaving need at least with this micro-batch."""
    _, plan, _ = planned(name)
    layout, train = plan.layout, plan.config.train
    least = layout.data * (layout.pipeline * train.micro_batch_size if layout.virtual_stages > 1 else 1)
    assert train.batch_ramp_start_tokens == max(32_768, least * plan.spec.sequence_length)


@pytest.mark.parametrize("gpu", GPU_TYPES, ids=lambda gpu: gpu.name)
def test_the_175b_layout(gpu):
    layout = planned(f"gpt3-175b-1024x{gpu.name.lower()}")[1].layout
    assert (layout.tensor, layout.zero_stage) == (8, 1)
    assert layout.pipeline in (8, 16)
    assert layout.virtual_stages > 1


REWRITE = "run python -m megagpt.plan_shipped"


@pytest.mark.parametrize("name", RUNS)
def test_deepspeeds_json_is_the_engines(name):
    path = ROOT / "configs" / "deepspeed" / f"{name}.json"
    assert path.read_text(encoding="utf-8") == deepspeed_json(planned(name)[1]), REWRITE


def test_there_is_no_json_without_a_run():
    assert sorted(path.stem for path in (ROOT / "configs" / "deepspeed").iterdir()) == sorted(RUNS)


def test_the_table_in_the_documentation_lists_every_run():
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    table = page[page.index(TABLE_BEGIN) : page.index(TABLE_END)]
    rows = [table_row(loaded, plan) for loaded, plan, _ in map(planned, RUNS)]
    assert table.splitlines(keepends=True)[4:-1] == rows, REWRITE
    assert "running.md" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_rewriting_replaces_the_table_and_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("runs", "models", "deepspeed"):
        (tmp_path / "configs" / folder).mkdir(parents=True)
    for path in ("runs/gpt3-base-8xa100-80g.toml", "models/gpt3-base.toml"):
        (tmp_path / "configs" / path).write_bytes((ROOT / "configs" / path).read_bytes())
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "running.md"
    page.write_text(f"before\n{TABLE_BEGIN}\nold\n{TABLE_END}\nafter\n")
    monkeypatch.setattr("megagpt.plan_shipped.ROOT", tmp_path)
    rewrite()
    text = page.read_text()
    assert text.startswith(f"before\n{TABLE_BEGIN}\n\n| run |")
    assert text.endswith(f"|\n\n{TABLE_END}\nafter\n")
    assert "old" not in text
    assert text.count("`gpt3-base-8xa100-80g`") == 1
    assert [path.name for path in (tmp_path / "configs" / "deepspeed").iterdir()] == ["gpt3-base-8xa100-80g.json"]
