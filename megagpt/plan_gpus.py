"""The GPU types that configurations name, and the plan of a run on its cluster, whose memory must fit with a margin.

In: a LoadedConfig, whose `cluster` section may name GPU and number. Out: a RunPlan. Imports no torch, to be quick.
"""

from typing import NamedTuple

from megagpt.config_file import LoadedConfig
from megagpt.config_text import any_of, nearest
from megagpt.errors import ConfigError
from megagpt.plan import RunPlan, make_plan, memory_problem
from megagpt.plan_memory import GIB

# The share of a GPU's memory that a plan's estimate may take. The rest, 9.5 GiB of 79.1, is for what the estimate
# leaves out: temporary tensors (rehearsals of eight shipped runs counted 0.3 to 2.1 GiB over their estimates), CUDA
# context and loaded kernels (0.5 to 1 GiB), NCCL's buffers (0.5 to 2 GiB, by the number of groups), cuBLAS workspaces,
# and fragmentation of torch's allocator (a few per cent). All but the first unmeasured.
MEMORY_SHARE = 0.88


class GpuType(NamedTuple):
    """One type of GPU in nodes as they are usually sold.

    memory_gib: what torch reports as the device's total memory; the driver keeps the rest. peak_tflops: dense bf16, as
    in training/devices.py, from the vendor's data sheets.
    """

    name: str
    memory_gib: float
    gpus_per_node: int
    peak_tflops: float


# Memory: torch's out-of-memory messages name 79.11 to 79.25 GiB for A100 80GB SXM and H100 80GB (vllm issue 27508,
# OOTDiffusion issue 235), 0.5 to 0.8 less than nvidia-smi (80.00 and 79.65); H200: nvidia-smi's 140.40 (143,771 MiB)
# less as much. Nodes: NVIDIA's DGX and HGX of these types hold 8 GPUs.
GPU_TYPES = (
    GpuType("A100-80G", 79.1, 8, 312.0),
    GpuType("H100-80G", 79.1, 8, 989.4),
    GpuType("H200", 139.7, 8, 989.4),
)


def find_gpu(loaded: LoadedConfig) -> GpuType | None:
    """The type that `cluster.gpu` names, None where it is unset. Raises ConfigError with the nearest names."""
    name = loaded.config.cluster.gpu
    if name is None:
        return None
    names = [gpu.name for gpu in GPU_TYPES]
    if name not in names:
        near = nearest(name, names) or names
        raise ConfigError(
            f"{loaded.describe('cluster.gpu')} is not a known type of GPU; use {any_of(near)}, or unset it and give "
            "the memory: megagpt plan --gpu-memory GIB"
        )
    return GPU_TYPES[names.index(name)]


def plan_on_cluster(
    loaded: LoadedConfig, num_gpus: int | None, tokenizer_vocab_size: int | None, gpu_memory_gib: float | None
) -> RunPlan:
    """The plan on `num_gpus`, or, where that is None, on `cluster.num_gpus`, or on one.

    It must fit into `gpu_memory_gib`, or, where that is None, into MEMORY_SHARE of the memory of `cluster.gpu`. Raises
    ConfigError with every problem found.
    """
    problems: list[str] = []
    gpu = None
    try:
        gpu = find_gpu(loaded)
    except ConfigError as error:
        problems += error.problems
    count = num_gpus if num_gpus is not None else loaded.config.cluster.num_gpus
    memory_gib = elastic_memory_gib(loaded) if gpu is not None and gpu_memory_gib is None else gpu_memory_gib
    try:
        plan = make_plan(loaded, 1 if count is None else count, tokenizer_vocab_size, memory_gib)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if gpu is not None and gpu_memory_gib is None and not fits(plan, gpu):
        available = (
            f"the {MEMORY_SHARE * gpu.memory_gib:.1f} GiB that a plan may take of {loaded.describe('cluster.gpu')}, "
            f"{MEMORY_SHARE:.0%} of its {gpu.memory_gib:g} GiB: CUDA, NCCL and fragmentation take the rest"
        )
        problems.append(memory_problem(loaded, plan, available))
    if problems:
        raise ConfigError(problems)
    return plan


def elastic_memory_gib(loaded: LoadedConfig) -> float | None:
    """What a layout that parallel.elastic finds may take of a GPU's memory; None: not known, or not elastic."""
    gpu = find_gpu(loaded)
    return MEMORY_SHARE * gpu.memory_gib if gpu is not None and loaded.config.parallel.elastic else None


def fits(plan: RunPlan, gpu: GpuType) -> bool:
    """Whether the fullest GPU of the plan leaves the margin."""
    return plan.peak_memory.total_bytes <= MEMORY_SHARE * gpu.memory_gib * GIB
