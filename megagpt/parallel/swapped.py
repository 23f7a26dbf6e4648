"""Continuing from a checkpoint where ZeRO 3 keeps parameters in files, which DeepSpeed's own loading cannot.

In: DeepSpeed's ZeRO 3 optimizer. Knows no engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def swapped_parameters_in_memory(optimizer: Any) -> Iterator[None]:
    """Load an optimizer's state within it: afterwards files hold the parameters that follow from its fp32 weights.

    DeepSpeed 0.19.8 copies every group of fp32 weights into the parameters (stage3.py, _rigid_load_state_dict), and a
    group whose parameters are in files has no tensor to copy into. It gets one meanwhile, and is then written out as
    after an update. Does nothing where no group is in files.
    """
    flat = optimizer.fp16_partitioned_groups_flat
    swapped = [number for number, group in enumerate(flat) if group is None]
    parts = {number: [part.data for part in optimizer.fp16_partitioned_groups[number]] for number in swapped}
    for number in swapped:
        dtype = optimizer.fp16_groups[number][0].dtype
        flat[number] = torch.empty_like(optimizer.fp32_partitioned_groups_flat[number], dtype=dtype)
    yield
    for number in swapped:
        flat[number] = None
        for part, data in zip(optimizer.fp16_partitioned_groups[number], parts[number], strict=True):
            part.data = data
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
