"""What a format of other software must be able to do, to be exported to. `run.py` does the rest for all of them."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from megagpt.errors import ConfigError
from megagpt.export.files import Files
from megagpt.export.options import DTYPES, ExportOptions
from megagpt.formats.source import ModelSource
from megagpt.inference.model import InferenceModel
from megagpt.tokenizer import Tokenizer


class Proof(NamedTuple):
    """What was compared with the client and found equal. Logits in float32, the difference an absolute one."""

    num_logits: int
    logits_max_difference: float
    logits_tolerance: float
    num_texts: int  # every one had identical token ids
    notes: tuple[str, ...] = ()  # what else was found, a line each


class Sampled(NamedTuple):
    """What was compared without the client's model."""

    num_parameters_compared: int  # read back from the files
    num_texts: int
    not_verified: str  # a line for the report


class Exporter(ABC):
    """One format. Stateless.

    format   as in --format
    dtypes   of the stored weights, the default first
    client   the software that proves it, for messages
    library  the name of its Python package, for the model card
    install  the command that installs the client
    """

    format: str
    dtypes: tuple[str, ...] = DTYPES
    client: str
    library: str
    install: str = "pip install 'megagpt[export]'"

    @abstractmethod
    def client_version(self) -> str:
        """Name and version of the client; imports it. Raises ImportError."""

    def check(  # noqa: B027 - most formats express all of it
        self, source: ModelSource, tokenizer: Tokenizer, options: ExportOptions
    ) -> None:
        """Raise ConfigError for what the format cannot express; called before anything is written."""

    @abstractmethod
    def write(self, source: ModelSource, tokenizer: Tokenizer, files: Files, options: ExportOptions) -> None:
        """Write all files but README.md and export_report.json, a parameter in memory at a time."""

    @abstractmethod
    def verify(self, ours: InferenceModel, tokenizer: Tokenizer, folder: Path, options: ExportOptions) -> Proof:
        """Compare the client's numbers from `folder` with those of our model, whose weights are as they are stored.

        Raises ExportError with the first disagreement.
        """

    def verify_sample(self, source: ModelSource, tokenizer: Tokenizer, folder: Path, options: ExportOptions) -> Sampled:
        """Compare what needs little memory. Raises ExportError; ConfigError where the format has no such check."""
        raise ConfigError(f"--verify sample is not available for --format {self.format}; use full or none")

    @abstractmethod
    def usage(self, folder: str) -> str:
        """How its client loads `folder`: one line for the terminal."""

    @abstractmethod
    def card(self, source: ModelSource, options: ExportOptions) -> str:
        """Markdown for the model card: what the files are and how the client loads them."""

    def stored_dtype(self, options: ExportOptions) -> str:
        """The torch dtype, one of DTYPES, to which our weights are rounded before they are compared."""
        return options.dtype

    def num_token_rows(self, source: ModelSource, options: ExportOptions) -> int:
        """Rows of the stored token table."""
        return source.spec.vocab_size
