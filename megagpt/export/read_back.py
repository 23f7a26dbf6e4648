"""The weights of an export as they lie in its files, compared with those that were meant, one tensor at a time."""

from pathlib import Path

import torch

from megagpt.errors import ExportError
from megagpt.export.tensors import OutTensor
from megagpt.formats.tensor_files import TensorFiles


def compare_files(folder: Path, tensors: list[OutTensor]) -> int:
    """How many tensors were compared: all of them. Raises ExportError where one is missing or has other values."""
    files = TensorFiles.in_folder(folder)
    for tensor in tensors:
        start = 0
        for part in tensor.parts():
            stop = start + len(part)
            if not torch.equal(files.read(tensor.name, start, stop), part):
                raise ExportError(f"{tensor.name} in {files.where(tensor.name)} holds other values than were written")
            start = stop
            del part
    if extra := sorted(set(files.names) - {tensor.name for tensor in tensors}):
        raise ExportError(f"{folder} holds {extra[0]}, which the model does not have")
    return len(tensors)
