"""Named tensors in others' files, read one at a time: safetensors or torch's, one file or several with an index.

    model.safetensors      model.safetensors.index.json and the files that it names
    pytorch_model.bin      pytorch_model.bin.index.json and the files that it names

torch's files are mapped into memory where they are zip archives, as all since torch 1.6; older ones are read whole.
In: a folder or paths. Out: tensors, or errors that name the file. Knows no model.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megagpt.errors import CheckpointError

STEMS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_FILES = tuple(name for stem in STEMS for name in (stem, f"{stem}.index.json"))
COPY_AGAIN = "copy it again"
_WRAPPERS = ("state_dict", "module", "model")  # a file can hold the tensors under one of these


class SafetensorsFile:
    """One safetensors file."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError where it is missing or damaged."""
        self.path = path
        with _reading(path), safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def read(self, name: str, start: int, stop: int | None) -> Tensor:
        """A copy of rows [start, stop)."""
        with _reading(self.path), safe_open(self.path, "pt") as file:  # type: ignore[no-untyped-call]
            view = file.get_slice(name)
            value: Tensor = view[start:stop] if view.get_shape() else file.get_tensor(name)
            return value.clone()


class TorchFile:
    """One file of torch.save that holds a dict of tensors, or one under "state_dict", "module" or "model".

    Nothing but tensors and plain values is unpickled.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError where it is missing, damaged or something else."""
        self.path = path
        self.content = load_torch_file(path)
        tensors: Any = self.content
        while not any(isinstance(value, Tensor) for value in tensors.values()):
            wrapped = [tensors[key] for key in _WRAPPERS if isinstance(tensors.get(key), Mapping)]
            if not wrapped:
                raise CheckpointError(
                    f"{path} holds no tensors: looked for a dict of them, or one under {', '.join(_WRAPPERS)}, and "
                    f"found {', '.join(map(str, list(tensors)[:5])) or 'nothing'}; name another file"
                )
            tensors = wrapped[0]
        self._tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        self.shapes = {name: tuple(value.shape) for name, value in self._tensors.items()}

    def read(self, name: str, start: int, stop: int | None) -> Tensor:
        """A copy of rows [start, stop)."""
        value = self._tensors[name]
        return (value[start:stop] if value.ndim else value).detach().clone()


class TensorFiles:
    """The tensors of one or more files, by name."""

    def __init__(self, files: list[SafetensorsFile | TorchFile]) -> None:
        self._files = files

    @classmethod
    def in_folder(cls, folder: Path) -> "TensorFiles":
        """Those of the first of STEMS that the folder has. Raises CheckpointError saying what was looked for."""
        for stem in STEMS:
            kind = SafetensorsFile if stem.endswith(".safetensors") else TorchFile
            if (folder / stem).is_file():
                return cls([kind(folder / stem)])
            if (folder / f"{stem}.index.json").is_file():
                return cls([kind(folder / name) for name in _files_of_index(folder / f"{stem}.index.json")])
        raise CheckpointError(f"{folder} has no weights: looked for {', '.join(WEIGHT_FILES)}; copy them there")

    @cached_property
    def _file_of(self) -> dict[str, SafetensorsFile | TorchFile]:
        return {name: file for file in self._files for name in file.shapes}

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._file_of)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [file.path for file in self._files]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that exists."""
        return self._file_of[name].shapes[name]

    def where(self, name: str) -> Path:
        """The file that holds it."""
        return self._file_of[name].path

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """A copy of a tensor, or of its rows [start, stop), in the file's number format. Raises CheckpointError."""
        return self._file_of[name].read(name, start, stop)


def load_torch_file(path: Path) -> dict[str, Any]:
    """The dict in a file of torch.save, on the CPU, its tensors mapped where possible. Raises CheckpointError."""
    with _reading(path):
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # from before torch 1.6
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of tensors; name another file")
    return dict(content)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of settings. Raises CheckpointError where it is missing, damaged or something else."""
    with _reading(path):
        values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not an object; {COPY_AGAIN}")
    return values


def _files_of_index(path: Path) -> list[str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{path} is damaged: it has no weight_map of names to files; {COPY_AGAIN}")
    return sorted(set(weight_map.values()))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Within, a file that cannot be read is a CheckpointError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {COPY_AGAIN}") from None
    except PermissionError:
        raise CheckpointError(f"{path} may not be read by this user; give it the rights") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is damaged, and is not opened: a pickle can run "
            "anything; save its tensors alone, as safetensors or with torch.save of a dict"
        ) from error
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {COPY_AGAIN}") from error
