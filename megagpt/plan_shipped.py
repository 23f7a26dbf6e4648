"""`python -m megagpt.plan_shipped`, in the repository: rewrites what follows from the runs in configs/runs.

In: those configurations. Out: configs/deepspeed/NAME.json and the table in docs/running.md. The JSON is what DeepSpeed
is given, for people to read; a run makes its own from its configuration.
"""

import json
from pathlib import Path

from megagpt.config_file import LoadedConfig, load_config
from megagpt.parallel.deepspeed_json import make_deepspeed_config
from megagpt.plan import RunPlan
from megagpt.plan_gpus import find_gpu, plan_on_cluster
from megagpt.plan_memory import GIB
from megagpt.plan_schedule import ideal_bubble, pass_costs, plan_timeline

ROOT = Path(__file__).resolve().parent.parent
TABLE_BEGIN = "<!-- written by python -m megagpt.plan_shipped -->"
TABLE_END = "<!-- end of what it writes -->"
_HEAD = """\
| run | tensor × pipeline × data | chunks a rank | micro-batch | a step | estimated GiB | bubble, with the head |
|---|---|---|---|---|---|---|
"""


def shipped_runs() -> list[Path]:
    """The files of configs/runs, smallest model and fewest GPUs first."""
    return sorted((ROOT / "configs" / "runs").glob("*.toml"), key=_size)


def _size(path: Path) -> tuple[int, int, str]:
    config = load_config(str(path), []).config
    return config.model.hidden_size, config.cluster.num_gpus or 0, path.stem


def deepspeed_json(plan: RunPlan) -> str:
    """The text of the JSON that the plan's engine gives DeepSpeed."""
    return json.dumps(make_deepspeed_config(plan.config.train, plan.config.parallel), indent=2) + "\n"


def table_row(loaded: LoadedConfig, plan: RunPlan) -> str:
    """One line of the table: layout, micro-batches, the fullest GPU's memory, the bubble without and with head."""
    gpu, layout = find_gpu(loaded), plan.layout
    assert gpu is not None, loaded.describe("cluster.gpu")
    num_micro_batches = plan.batches.stages[-1].num_micro_batches
    sizes = (layout.pipeline, layout.virtual_stages, num_micro_batches)
    timeline = plan_timeline(*sizes, pass_costs(plan.spec, layout, plan.config.train))
    cells = (
        f"`{plan.config.run.name}`",
        f"{layout.tensor} × {layout.pipeline} × {layout.data}",
        str(layout.virtual_stages),
        str(plan.config.train.micro_batch_size),
        str(num_micro_batches),
        f"{plan.peak_memory.total_bytes / GIB:.1f} of {gpu.memory_gib:g}",
        f"{ideal_bubble(*sizes):.1%}, {timeline.bubble:.1%}" if layout.pipeline > 1 else "none",
    )
    return f"| {' | '.join(cells)} |\n"


def rewrite() -> None:
    """Rewrites the files. Raises ConfigError where a run cannot work, or does not fit its GPUs."""
    rows = []
    for path in shipped_runs():
        loaded = load_config(str(path), [])
        plan = plan_on_cluster(loaded, None, None, None)
        (ROOT / "configs" / "deepspeed" / f"{path.stem}.json").write_text(deepspeed_json(plan), encoding="utf-8")
        rows.append(table_row(loaded, plan))
    page = ROOT / "docs" / "running.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(TABLE_BEGIN)
    _, _, after = rest.partition(TABLE_END)
    page.write_text(f"{before}{TABLE_BEGIN}\n\n{_HEAD}{''.join(rows)}\n{TABLE_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    rewrite()
