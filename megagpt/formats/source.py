"""A model as it lies in files: its shape, its tokenizer, and its parameters, one at a time under our names.

Whoever needs a model's weights (generation on any ranks, export, import, evaluation, fine-tuning) takes a ModelSource
and never learns whose files they are. `open_source.py` makes one of a folder. Knows nothing of ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megagpt.errors import CheckpointError
from megagpt.model.names import ParameterInfo, parameter_shapes
from megagpt.model.spec import ModelSpec
from megagpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of a model's training; for its model card."""

    megagpt_version: str
    step: int
    tokens: int  # trained on
    loss: float | None  # of the last step's batch, nats a token
    precision: str
    data: str | None = None  # names of the corpora


class ModelSource(ABC):
    """One model in files.

    folder      the files, for messages
    format      the files' kind in words, such as "megagpt checkpoint"
    spec        the model; `padded_vocab_size` rows of the token table exist, whatever the files hold
    tokenizer   None: the files have none
    facts       None: another software's model
    """

    folder: Path
    format: str
    spec: ModelSpec
    tokenizer: Tokenizer | None
    facts: TrainingFacts | None = None

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The whole parameter of this global name (`model/names.py`), on the CPU, in the number format of the files.

        Rows of the token table beyond the files' are zero. The caller may change it. Reads from the files each time and
        keeps nothing. Raises CheckpointError or DataError where it is missing, damaged or of another shape.
        """

    def read_slice(self, name: str, tensor_rank: int, tensor_size: int) -> Tensor:
        """The part of `read(name)` that a tensor rank holds."""
        whole, dim = self.read(name), self.infos[name].split_dim
        return whole if dim is None else whole.chunk(tensor_size, dim)[tensor_rank].contiguous()

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of `read(name)`, which sources with large files read alone."""
        return self.read(name)[start:stop].clone()

    @property
    def infos(self) -> dict[str, ParameterInfo]:
        """Every parameter by its global name, in the order of the forward pass."""
        return parameter_shapes(self.spec)

    @property
    def num_ids(self) -> int:
        """Ids below this exist: the vocabulary can be larger than the tokenizer's, and is padded beyond both."""
        if self.tokenizer is None:
            return self.spec.vocab_size
        return min(self.spec.vocab_size, self.tokenizer.vocab_size)


class MemorySource(ModelSource):
    """A model whose parameters are in memory; of `fake` tensors it is a model of any size without weights."""

    def __init__(
        self,
        spec: ModelSpec,
        parameters: dict[str, Tensor],
        tokenizer: Tokenizer | None = None,
        folder: Path = Path(),
        facts: TrainingFacts | None = None,
    ) -> None:
        self.spec, self.tokenizer, self.folder, self.facts = spec, tokenizer, folder, facts
        self.format = "model in memory"
        self._parameters = parameters
        check_names(self, parameters)

    def read(self, name: str) -> Tensor:
        """A copy of the parameter."""
        return self._parameters[name].clone()

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """A copy of them."""
        return self._parameters[name][start:stop].clone()


class RoundedSource(ModelSource):
    """Another source with its values rounded to a number format, in float32: the model that an export stores."""

    def __init__(self, source: ModelSource, dtype: torch.dtype) -> None:
        self.folder, self.format, self.spec = source.folder, source.format, source.spec
        self.tokenizer, self.facts = source.tokenizer, source.facts
        self._source, self._dtype = source, dtype

    def read(self, name: str) -> Tensor:
        """float32."""
        return self._source.read(name).to(self._dtype).float()


def check_names(source: ModelSource, names: Iterable[str]) -> None:
    """Raise CheckpointError unless the names are those of the model's parameters."""
    found, wanted = set(names), set(source.infos)
    if found != wanted:
        raise CheckpointError(
            f"{source.folder} does not hold the parameters of its model: missing {sorted(wanted - found)}, "
            f"unknown {sorted(found - wanted)}; use another checkpoint"
        )


def round_like(value: Tensor, precision: str) -> Tensor:
    """float32 values as a run in this precision computed with them."""
    computed_in = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return value.to(computed_in).float()
