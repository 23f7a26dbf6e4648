"""One view of the optimizer's state, whatever ZeRO stage, precision or offloading: pieces by global parameter name.

    optimizer                                  fp32 masters and moments that a rank holds
    torch's own (ZeRO 0)                       of every whole parameter: each is its own master
    DeepSpeedZeroOptimizer (ZeRO 1 and 2)      of one part of a flat buffer of all parameters; likewise
    BF16_Optimizer (ZeRO 1 in bf16)            the same under other names
    DeepSpeedZeroOptimizer_Stage3 (ZeRO 3)     of one part of every parameter, in flat buffers

In: DeepSpeed's optimizer and this rank's parameters by name. Out: pieces, views that a checkpoint is written from
and read into. Padding is in no piece. Knows nothing of files.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megagpt.checkpoint.manifest import LossScale
from megagpt.checkpoint.pieces import Piece
from megagpt.model.names import TOKEN_EMBEDDING
from megagpt.parallel.mesh import Mesh


class _Place(NamedTuple):
    """Elements [start, stop) of a parameter are those from `offset` on of a tensor that the optimizer updates."""

    name: str
    start: int
    stop: int
    updated: Tensor
    offset: int


def held_pieces(optimizer: Any, parameters: dict[str, nn.Parameter], mesh: Mesh) -> list[Piece]:
    """All masters and moments on this rank, as views. Moments that do not exist before the first update are made."""
    pieces = []
    for place in _places(optimizer, parameters, mesh.gradient_rank):
        state = adam_state(optimizer, place.updated)
        tensors = (place.updated, state["exp_avg"], state["exp_avg_sq"])
        size = place.stop - place.start
        views = (tensor.detach().view(-1)[place.offset : place.offset + size] for tensor in tensors)
        tensor_slice = mesh.tensor_rank if _is_split(parameters[place.name]) else 0
        pieces.append(Piece(place.name, tensor_slice, place.start, place.stop, *views))
    return pieces


def owned_pieces(optimizer: Any, parameters: dict[str, nn.Parameter], mesh: Mesh) -> list[Piece]:
    """The held pieces that this rank saves: over all ranks, each element of each parameter once."""
    owned = []
    for piece in held_pieces(optimizer, parameters, mesh):
        is_copy = not _is_split(parameters[piece.name]) and mesh.tensor_rank > 0
        # the last stage's table: its weights follow the first stage's after every update (engine.py)
        if is_copy or (piece.name == TOKEN_EMBEDDING and not mesh.is_first_stage):
            continue
        if _is_unpartitioned(optimizer):  # every gradient rank holds it: an even share each
            ends = [(piece.stop * rank) // mesh.gradient_size for rank in (mesh.gradient_rank, mesh.gradient_rank + 1)]
            piece = piece.narrow(*ends)
        if piece.start < piece.stop:
            owned.append(piece)
    return owned


def num_updates(optimizer: Any) -> int:
    """AdamW's step count; the same on every rank."""
    for updated in _updated(optimizer):
        return int(adam_state(optimizer, updated)["step"])
    raise AssertionError("an optimizer without parameters")


def set_num_updates(optimizer: Any, updates: int) -> None:
    """Set AdamW's step count."""
    for updated in _updated(optimizer):
        adam_state(optimizer, updated)["step"].fill_(updates)


def loss_scale_of(optimizer: Any) -> LossScale:
    """What moves in DeepSpeed's dynamic loss scaler (runtime/fp16/loss_scaler.py); fp16 only."""
    scaler = optimizer.loss_scaler
    return LossScale(float(scaler.cur_scale), scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis)


def set_loss_scale(optimizer: Any, scale: LossScale) -> None:
    """The reverse of `loss_scale_of`."""
    scaler = optimizer.loss_scaler
    scaler.cur_scale, scaler.cur_iter = scale.scale, scale.iteration
    scaler.last_overflow_iter, scaler.cur_hysteresis = scale.last_overflow_iteration, scale.hysteresis


@torch.no_grad()
def gather_weights(optimizer: Any, mesh: Mesh) -> None:
    """Make the model's weights from the masters. Every rank calls it; gathers over the gradient group."""
    if _is_unpartitioned(optimizer):
        return
    if _is_stage_3(optimizer):
        optimizer.checkpoint_event_prologue()  # leaves no parameter gathered
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        optimizer.checkpoint_event_epilogue()  # gathers those that stay so
        return
    is_bf16 = hasattr(optimizer, "bf16_partitioned_groups")
    groups = optimizer.bf16_partitioned_groups if is_bf16 else optimizer.parallel_partitioned_bit16_groups
    for parts, master in zip(groups, _updated(optimizer), strict=True):
        own = parts[mesh.gradient_rank]
        own.copy_(master)
        dist.all_gather(list(parts), own.clone(), group=mesh.gradient_group)


def _places(optimizer: Any, parameters: dict[str, nn.Parameter], gradient_rank: int) -> Iterator[_Place]:
    if _is_unpartitioned(optimizer):
        for name, parameter in parameters.items():
            yield _Place(name, 0, parameter.numel(), parameter, 0)
    elif _is_stage_3(optimizer):
        for name, parameter in parameters.items():
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]  # size: with padding
            start, stop = size * gradient_rank, min(size * (gradient_rank + 1), parameter.ds_numel)  # type: ignore[attr-defined]
            if start < stop:
                yield _Place(name, start, stop, optimizer.fp32_partitioned_groups_flat[group], offset)
    else:
        updated = _updated(optimizer)
        for name, parameter in parameters.items():
            fragment = parameter._hp_mapping  # type: ignore[attr-defined]  # deepspeed/utils/tensor_fragment.py
            if fragment is not None:
                here, there = fragment.lp_fragment_address, fragment.hp_fragment_address
                stop = here.start + here.numel
                yield _Place(name, here.start, stop, updated[fragment.param_group_index], there.start)


def _updated(optimizer: Any) -> list[Tensor]:
    """The tensors that the optimizer updates: parameters, or flat float32 masters."""
    if _is_unpartitioned(optimizer):
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name in ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    raise AssertionError(f"an optimizer without masters: {type(optimizer).__name__}")


def adam_state(optimizer: Any, updated: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a tensor that the optimizer updates: `step`, `exp_avg`, `exp_avg_sq`.

    Made as torch makes it at the first update (optim/adamw.py, fused).
    """
    adam = optimizer if _is_unpartitioned(optimizer) else optimizer.optimizer
    assert isinstance(adam, torch.optim.AdamW), type(adam)
    state: dict[str, Tensor] = adam.state[updated]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=updated.device)
        state["exp_avg"] = torch.zeros_like(updated, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(updated, requires_grad=False)
    return state


def _is_unpartitioned(optimizer: Any) -> bool:
    return isinstance(optimizer, torch.optim.Optimizer)


def _is_stage_3(optimizer: Any) -> bool:
    return hasattr(optimizer, "fp32_partitioned_groups_flat")


def _is_split(parameter: nn.Parameter) -> bool:
    return bool(parameter.tensor_model_parallel)  # type: ignore[attr-defined]
