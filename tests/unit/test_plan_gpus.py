"""The table of GPU types, and `megagpt plan` on the cluster that a configuration names."""

import pytest

from megagpt.config_file import load_config
from megagpt.errors import ConfigError
from megagpt.plan_cli import run_plan_command
from megagpt.plan_gpus import GPU_TYPES, MEMORY_SHARE, find_gpu, fits, plan_on_cluster
from megagpt.plan_memory import GIB
from megagpt.training.devices import peak_tflops

DRIVERS_NAMES = {
    "A100-80G": "NVIDIA A100-SXM4-80GB",
    "H100-80G": "NVIDIA H100 80GB HBM3",
    "H200": "NVIDIA H200",
}


@pytest.mark.parametrize("gpu", GPU_TYPES, ids=lambda gpu: gpu.name)
def test_peaks_are_those_of_the_devices(gpu):
    assert gpu.peak_tflops == peak_tflops(DRIVERS_NAMES[gpu.name], "bf16")


def test_gpus_and_memory_are_those_of_the_cluster(capsys):
    assert run_plan_command(["gpt3-base", "--cluster.num_gpus=16", "--cluster.gpu=H200"]) == 0
    assert "gpt3-base on 16 GPUs" in capsys.readouterr().out
    assert run_plan_command(["gpt3-base", "--cluster.num_gpus=16", "--gpus=8"]) == 0
    assert "gpt3-base on 8 GPUs" in capsys.readouterr().out
    assert run_plan_command(["gpt3-base"]) == 0
    assert "gpt3-base on 1 GPUs" in capsys.readouterr().out


def test_a_plan_over_the_share_of_the_memory_is_refused():
    gpu = GPU_TYPES[0]
    arguments = ["--cluster.num_gpus=8", "--train.micro_batch_size=8"]
    loaded = load_config("gpt3-2.7b", [*arguments, f"--cluster.gpu={gpu.name}"])
    plan = plan_on_cluster(loaded, None, None, None)
    assert fits(plan, gpu)
    needed = plan.peak_memory.total_bytes / GIB
    assert not fits(plan, gpu._replace(memory_gib=needed / MEMORY_SHARE * 0.999))
    assert fits(plan, gpu._replace(memory_gib=needed / MEMORY_SHARE * 1.001))

    loaded = load_config("gpt3-2.7b", ["--cluster.gpu=A100-80G", "--train.micro_batch_size=16"])
    with pytest.raises(ConfigError) as raised:
        plan_on_cluster(loaded, 8, None, None)
    (problem,) = raised.value.problems
    assert 'more than the 69.6 GiB that a plan may take of cluster.gpu = "A100-80G" (command line), 88%' in problem
    assert "train.micro_batch_size = 16 (command line)" in problem
    # memory that is given counts as it is, whatever the cluster
    assert plan_on_cluster(loaded, 8, None, 200.0).layout.world_size == 8
    with pytest.raises(ConfigError, match=r"more than the 79\.1 GiB it has"):
        plan_on_cluster(loaded, 8, None, 79.1)


@pytest.mark.parametrize(
    ("name", "offered"),
    [("A100-80", "A100-80G"), ("h200", "use H200,"), ("x", "A100-80G, H100-80G or H200")],
)
def test_an_unknown_gpu_is_refused_with_the_names(name, offered):
    loaded = load_config("gpt3-base", [f"--cluster.gpu={name}", "--parallel.tensor=5"])
    with pytest.raises(ConfigError, match=rf'cluster.gpu = "{name}" \(command line\) is not a known type') as raised:
        find_gpu(loaded)
    assert offered in raised.value.problems[0]
    with pytest.raises(ConfigError) as raised:
        plan_on_cluster(loaded, 8, None, None)
    assert "is not a known type of GPU" in raised.value.problems[0]
    assert any("parallel.tensor = 5" in problem for problem in raised.value.problems[1:])
