"""The mesh of ranks: who this process is on each axis, and the process group of each axis.

    axis       ranks differ in                               group used for
    tensor     slices of each matrix                         all-reduce (or gather and scatter) inside each layer
    context    parts of each sequence                        all-to-all around attention
    data       sequences of the batch                        (see gradient)
    pipeline   consecutive layers                            sending activations to the next stage
    gradient   data and context: same slices of the model    gradient reduction, ZeRO shards
    embedding  the two ends of a pipeline                    gradient of the tied token table

The only file that imports megatron-core's `parallel_state`. Rank order is megatron-core's default: tensor fastest,
then context, data and pipeline, so tensor ranks share a node.
"""

import math
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed import ProcessGroup

from megagpt.errors import ConfigError
from megagpt.parallel.cpu import patch_megatron_for_cpu
from megagpt.parallel.launcher import launched_rank, launched_world_size


@dataclass(frozen=True)
class Mesh:
    """Place of this rank. Sizes multiply to the world size; groups hold the ranks that differ on that axis alone."""

    world_size: int
    rank: int
    tensor_size: int
    tensor_rank: int
    pipeline_size: int
    pipeline_rank: int
    data_size: int
    data_rank: int
    context_size: int
    context_rank: int
    gradient_size: int  # data_size * context_size
    gradient_rank: int
    tensor_group: ProcessGroup
    pipeline_group: ProcessGroup
    context_group: ProcessGroup
    gradient_group: ProcessGroup
    embedding_group: ProcessGroup | None  # None on stages that hold no copy of the tied table
    device: torch.device

    @property
    def is_first_stage(self) -> bool:
        """This rank holds the embedding."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """This rank holds the output head and computes the loss."""
        return self.pipeline_rank == self.pipeline_size - 1


def build_mesh(
    tensor: int, pipeline: int, virtual_stages: int = 1, context: int = 1, timeout_seconds: float = 1800
) -> Mesh:
    """Start torch.distributed (unless it runs already) and cut its ranks into axes; every rank calls it once.

    A collective of any group that takes over `timeout_seconds` fails.
    Backend NCCL with CUDA, else gloo. Without a launcher the mesh is this one process. Raises ConfigError where the
    number of ranks does not divide, before any group is made.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else launched_world_size()
    unit = tensor * context * pipeline
    if world_size % unit:
        raise ConfigError(
            f"{world_size} ranks do not divide into parallel.tensor = {tensor} × parallel.context = {context} × "
            f"parallel.pipeline = {pipeline}; start a multiple of {unit} ranks"
        )
    patch_megatron_for_cpu()
    device = _this_device()
    if not dist.is_initialized():
        _start_process_group(world_size, device, timeout_seconds)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual_stages if virtual_stages > 1 else None,
        context_parallel_size=context,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=math.ceil(timeout_seconds / 60),
    )
    return Mesh(
        world_size=world_size,
        rank=dist.get_rank(),
        tensor_size=tensor,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_size=pipeline,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        context_size=context,
        context_rank=parallel_state.get_context_parallel_rank(),
        gradient_size=parallel_state.get_data_parallel_world_size(with_context_parallel=True),
        gradient_rank=parallel_state.get_data_parallel_rank(with_context_parallel=True),
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        pipeline_group=parallel_state.get_pipeline_model_parallel_group(),
        context_group=parallel_state.get_context_parallel_group(),
        gradient_group=parallel_state.get_data_parallel_group(with_context_parallel=True),
        embedding_group=_embedding_group(pipeline),
        device=device,
    )


def group_apart(timeout_seconds: float = 6 * 3600) -> ProcessGroup:
    """A group of all ranks over gloo for one thread of each, beside those of training. Every rank calls it.

    A collective in it may wait long: for the slowest rank to write its part of a checkpoint.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))


def destroy_mesh() -> None:
    """Leave every process group; each rank calls it once at the end."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


class DeepSpeedMesh:
    """The `mpu` that DeepSpeed asks about its ranks: a thin view of the mesh under DeepSpeed's names.

    DeepSpeed's "model parallel" group holds every rank of one data replica (tensor × pipeline): its gradient norm is
    summed there.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def get_model_parallel_rank(self) -> int:
        """Rank within one replica of the model."""
        return dist.get_rank(self.get_model_parallel_group())

    def get_model_parallel_world_size(self) -> int:
        """Ranks in one replica of the model."""
        return self._mesh.tensor_size * self._mesh.pipeline_size

    def get_model_parallel_group(self) -> ProcessGroup:
        """Group of one replica of the model."""
        return parallel_state.get_model_parallel_group()

    def get_tensor_model_parallel_rank(self) -> int:
        """Rank on the tensor axis."""
        return self._mesh.tensor_rank

    def get_tensor_model_parallel_world_size(self) -> int:
        """Size of the tensor axis."""
        return self._mesh.tensor_size

    def get_tensor_model_parallel_group(self) -> ProcessGroup:
        """Group of the tensor axis."""
        return self._mesh.tensor_group

    def get_pipeline_model_parallel_rank(self) -> int:
        """Rank on the pipeline axis."""
        return self._mesh.pipeline_rank

    def get_pipeline_model_parallel_world_size(self) -> int:
        """Size of the pipeline axis."""
        return self._mesh.pipeline_size

    def get_data_parallel_rank(self) -> int:
        """Rank among those with the same slices: for DeepSpeed, context ranks are data ranks too."""
        return self._mesh.gradient_rank

    def get_data_parallel_world_size(self) -> int:
        """Number of ranks with the same slices."""
        return self._mesh.gradient_size

    def get_data_parallel_group(self) -> ProcessGroup:
        """Group of the ranks with the same slices."""
        return self._mesh.gradient_group


def _this_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _start_process_group(world_size: int, device: torch.device, timeout_seconds: float) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    if _is_restart_of_one_agent():
        # torchrun keeps one store for all attempts, and ranks would find the addresses of those that are dead there
        # (pytorch issue 135712); agents of several machines count their restarts apart, and need
        # TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which megagpt's launchers set
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        shared = dist.TCPStore(address, port, world_size, is_master=False, timeout=timeout)
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", shared)
        dist.init_process_group(backend, rank=launched_rank(), world_size=world_size, store=store, timeout=timeout)
    elif "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        assert world_size == 1, "more than one rank needs a launcher that sets MASTER_ADDR"
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore(), timeout=timeout)


def _is_restart_of_one_agent() -> bool:
    environment = os.environ
    shares_store = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return (
        shares_store
        and environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        and environment.get("GROUP_WORLD_SIZE") == "1"
    )


def _embedding_group(pipeline: int) -> ProcessGroup | None:
    if pipeline == 1 or not parallel_state.is_rank_in_embedding_group():
        return None
    return parallel_state.get_embedding_group()
