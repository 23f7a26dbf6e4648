"""Tensors as safetensors files, one or several with an index, written as they come. In: OutTensors. Out: files.

    8 bytes     length of the header, little-endian
    header      JSON: {"__metadata__": ..., name: {"dtype", "shape", "data_offsets": [start, stop]}, ...}, padded
    data        the tensors one after the other

Source: https://huggingface.co/docs/safetensors. The library's own `save_file` wants all tensors in memory.
"""

import json
from typing import Any

import torch

from megagpt.export.files import Files
from megagpt.export.tensors import OutTensor

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 64


def write_safetensors(files: Files, tensors: list[OutTensor], shard_bytes: int, stem: str = "model") -> list[str]:
    """Write `stem`.safetensors, or as many numbered files as `shard_bytes` asks for and their index; returns names.

    Tensors keep their order, and none is divided: one larger than `shard_bytes` has a file of its own.
    """
    shards = divide(tensors, shard_bytes)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": sum(tensor.num_bytes for tensor in tensors)},
            "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }
        files.write_json(f"{stem}.safetensors.index.json", index)
    for name, shard in zip(names, shards, strict=True):
        _write_file(files, name, shard)
    return names


def divide(tensors: list[OutTensor], shard_bytes: int) -> list[list[OutTensor]]:
    """The tensors of each file."""
    shards: list[list[OutTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.num_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.num_bytes
    return shards


def _write_file(files: Files, name: str, tensors: list[OutTensor]) -> None:
    with files.open(name) as file:
        file.write(_header(tensors))
        for tensor in tensors:
            written = 0
            for part in tensor.parts():
                file.write_tensor(part)
                written += part.nbytes
                del part  # before the next one is read
            assert written == tensor.num_bytes, (tensor.name, written, tensor.num_bytes)


def _header(tensors: list[OutTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants to know the library
    start = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.num_bytes],
        }
        start += tensor.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    length = -(-(8 + len(text)) // _ALIGNMENT) * _ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length)
