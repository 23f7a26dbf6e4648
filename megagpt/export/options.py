"""What a user can choose of an export, the same for every format."""

from dataclasses import dataclass
from typing import Literal, get_args

from megagpt.errors import ConfigError

Verify = Literal["full", "sample", "none"]
VERIFY_LEVELS: tuple[Verify, ...] = get_args(Verify)
DTYPES = ("float32", "bfloat16", "float16")  # of stored weights; torch's names
GB = 10**9


@dataclass(frozen=True)
class ExportOptions:
    """Choices of one export.

    dtype         number format of the stored weights; a format says which it has
    overwrite     replace an earlier export, nothing else
    verify        full: the client loads it, and logits and token ids are compared; sample: token ids, and the files
                  read back and compared with the source's weights, a parameter at a time; none: nothing
    shard_bytes   largest size of a file of weights, where the format can divide them; a tensor is never divided
    tensor_ranks  files (tensor-parallel ranks) of formats that have one a rank
    """

    dtype: str = "float32"
    overwrite: bool = False
    verify: Verify = "full"
    shard_bytes: int = 5 * GB
    tensor_ranks: int = 1

    def __post_init__(self) -> None:
        if self.verify not in VERIFY_LEVELS:
            raise ConfigError(f"verify {self.verify!r} is unknown; use {', '.join(VERIFY_LEVELS)}")
        for name in ("shard_bytes", "tensor_ranks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
