"""Errors that a user can cause. Each message names the value, where it came from, and the fix.

Anything else that goes wrong is our own mistake and fails as an AssertionError or the library's own exception.
"""


class MegagptError(Exception):
    """Base of every error a user can cause; the command line prints its message without a traceback."""


class ConfigError(MegagptError):
    """A configuration that cannot be read or cannot work; `problems` holds every one found, not just the first."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        assert self.problems, "a ConfigError needs at least one problem"
        super().__init__("\n".join(self.problems))


def no_rights(error: PermissionError) -> ConfigError:
    """What to say of a file or folder, wherever it was met, that this user may not use."""
    return ConfigError(f"{error.filename} may not be used by this user ({error.strerror}); give it the rights")


class DataError(MegagptError):
    """A corpus, tokenizer or dataset that is missing, damaged, or does not belong to this run."""


class CheckpointError(MegagptError):
    """A checkpoint that is missing, damaged, or of another model or layout."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint of which a part is missing or not what was written: another one may be whole."""


class TrainingError(MegagptError):
    """Training that must not go on, such as a loss or gradient that is not finite."""


class LostPeer(MegagptError):
    """Another rank is gone, and nobody here did anything wrong: started again, the run goes on."""


class GenerationError(MegagptError):
    """A request for text that cannot be served, such as a prompt longer than the model's context."""


class ExportError(MegagptError):
    """An export that could not be written, or whose numbers are not ours; nothing of it is kept."""
