"""Everything about a run that can be read and checked before any process group starts. No communication.

In: the loaded configuration and the number of ranks. Out: PreparedRun with plan, tokenizer, data and the checkpoint to
continue from, or the first error that names what to fix.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megagpt.checkpoint.load import RunIdentity, check_belongs, latest_checkpoint
from megagpt.checkpoint.manifest import Manifest
from megagpt.config_file import LoadedConfig
from megagpt.data.stream import BatchStream, SampleSource
from megagpt.environment import check_apex, check_megatron, check_upstream, check_wandb_login
from megagpt.errors import CheckpointError, ConfigError
from megagpt.parallel.launcher import launched_rank
from megagpt.plan import RunPlan, make_plan
from megagpt.plan_gpus import elastic_memory_gib
from megagpt.tokenizer import Tokenizer, load_tokenizer
from megagpt.training.data import RunData, Validation, prepare_data
from megagpt.training.run_folder import check_nvme_folder, check_run_folder

if TYPE_CHECKING:
    from megagpt.parallel.mesh import Mesh  # imports megatron-core, which takes seconds


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start on every rank."""

    plan: RunPlan
    tokenizer: Tokenizer
    data: RunData
    identity: RunIdentity
    resume_from: tuple[Path, Manifest] | None

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.plan.config.run.folder)

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    def training_stream(self, mesh: "Mesh") -> BatchStream:
        """This rank's training batches."""
        return self._stream(self.data.training, mesh)

    def validation_stream(self, validation: Validation, mesh: "Mesh") -> BatchStream:
        """This rank's batches of one corpus's held-out samples."""
        return self._stream(validation.samples, mesh)

    def _stream(self, samples: SampleSource, mesh: "Mesh") -> BatchStream:
        return BatchStream(
            samples,
            self.plan.spec.sequence_length,
            self.tokenizer.eod_id,
            self.plan.config.data.separate_documents,
            mesh.data_rank,
            mesh.data_size,
            mesh.context_rank,
            mesh.context_size,
        )


def prepare_run(loaded: LoadedConfig, num_ranks: int, elsewhere: bool = False) -> PreparedRun:
    """Read and check all of a run. Raises ConfigError, DataError or CheckpointError.

    `elsewhere`: other machines will train, so that this one's local disk is not looked at.
    """
    check_apex()
    check_megatron()
    check_upstream()
    config = loaded.config
    if config.log.wandb == "online" and launched_rank() == 0:  # the rank that logs in
        check_wandb_login()
    missing = [
        f"{loaded.describe(key)}: training needs {what}"
        for key, what in (("tokenizer.path", "a tokenizer file"), ("data.path", "an indexed dataset"))
        if loaded.value(key) is None and not (key == "data.path" and config.data.corpora is not None)
    ]
    tokenizer = load_tokenizer(config.tokenizer.path) if config.tokenizer.path else None
    try:
        vocab_size = tokenizer.vocab_size if tokenizer else None
        plan = make_plan(loaded, num_ranks, vocab_size, elastic_memory_gib(loaded))
    except ConfigError as error:
        raise ConfigError(missing + error.problems) from None
    if missing:
        raise ConfigError(missing)
    assert tokenizer is not None
    identity = _identity(plan, tokenizer)
    resume = _resume_from(loaded, plan, Path(config.run.folder) / "checkpoints", identity)
    data = prepare_data(plan, tokenizer, resume)
    if resume is None or resume[1].step < plan.num_steps:  # a run that is complete writes nothing
        check_run_folder(loaded, plan)
        if not elsewhere:
            check_nvme_folder(loaded, plan)
    return PreparedRun(plan, tokenizer, data, identity, resume)


def _resume_from(
    loaded: LoadedConfig, plan: RunPlan, checkpoints: Path, identity: RunIdentity
) -> tuple[Path, Manifest] | None:
    latest = latest_checkpoint(checkpoints)
    if latest is None:
        return None
    if loaded.config.checkpoint.resume == "never":
        raise ConfigError(
            f"{loaded.describe('checkpoint.resume')}, but {checkpoints} holds a checkpoint ({latest.name}); "
            'use "auto" to continue from it, or choose another run.folder'
        )
    manifest = check_belongs(latest, identity)
    tokens = plan.batches.tokens_after(manifest.step - 1)
    if tokens != manifest.tokens:  # the next step would not begin with the next sample
        batch = ("train.batch_tokens", "train.batch_ramp_tokens", "train.batch_ramp_start_tokens")
        raise CheckpointError(
            f"the run cannot continue from {latest}: it was trained on {manifest.tokens} tokens in its {manifest.step} "
            f"steps, with this configuration they are {tokens}: {', '.join(map(loaded.describe, batch))}. "
            "Restore these values, or choose another run.folder to start anew"
        )
    return latest, manifest


def _identity(plan: RunPlan, tokenizer: Tokenizer) -> RunIdentity:
    return RunIdentity(
        spec=plan.spec,
        precision=plan.config.train.precision,
        seed=plan.config.run.seed,
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
