"""Everything about a run that can be read and checked before any process group starts. No communication.

In: the loaded configuration and the number of ranks. Out: PreparedRun with plan, tokenizer, data and the checkpoint to
continue from, or the first error that names what to fix.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from megagpt.checkpoint.differences import BATCH_KEYS, Difference, RunIdentity, changed_settings, refusal
from megagpt.checkpoint.fault_history import FaultHistory
from megagpt.checkpoint.load import check_belongs
from megagpt.checkpoint.manifest import Manifest
from megagpt.config_file import LoadedConfig
from megagpt.data.stream import BatchStream, SampleSource
from megagpt.environment import check_apex, check_megatron, check_upstream, check_wandb_login
from megagpt.errors import ConfigError
from megagpt.parallel.launcher import launched_rank
from megagpt.plan import RunPlan, make_plan
from megagpt.plan_gpus import elastic_memory_gib
from megagpt.tokenizer import Tokenizer, load_tokenizer
from megagpt.training.data import RunData, Validation, prepare_data
from megagpt.training.resume_choice import PassedOver, ResumeChoice, choose_checkpoint
from megagpt.training.run_folder import check_nvme_folder, check_run_folder

if TYPE_CHECKING:
    from megagpt.parallel.mesh import Mesh  # imports megatron-core, which takes seconds


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start on every rank."""

    loaded: LoadedConfig
    plan: RunPlan
    tokenizer: Tokenizer
    data: RunData
    identity: RunIdentity
    resume_from: tuple[Path, Manifest] | None
    damaged: tuple[PassedOver, ...]  # checkpoints that would have come before that
    changed: tuple[Difference, ...] = ()  # values that the checkpoint's configuration has otherwise
    allow_data_change: bool = False

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.plan.config.run.folder)

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    @property
    def first_step(self) -> int:
        """Updates done already."""
        return self.resume_from[1].step if self.resume_from else 0

    @property
    def faults_before(self) -> FaultHistory:
        """What the run remembers of its faults where this session begins; losses on other data tell nothing."""
        if self.resume_from is None:
            return FaultHistory()
        manifest = self.resume_from[1]
        if manifest.phases != self.data.training.phases:
            return replace(manifest.faults, losses=(), spiking_steps=0)
        return manifest.faults

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


def prepare_run(
    loaded: LoadedConfig, num_ranks: int, elsewhere: bool = False, allow_data_change: bool = False
) -> PreparedRun:
    """Read and check all of a run. Raises ConfigError, DataError or CheckpointError.

    `elsewhere`: other machines will train, so that this one's local disk is not looked at. `allow_data_change`: a
    checkpoint that was trained on other data is no error; the run goes on with the new data.
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
    loaded = LoadedConfig(plan.config, plan.origins)  # parallel.elastic may have found another layout
    identity = _identity(plan, tokenizer)
    choice = _choose(loaded, plan, identity)
    resume, changed = choice.checkpoint, _changed(loaded, choice)
    data = prepare_data(plan, tokenizer, resume, changed, allow_data_change)
    if resume is None or resume[1].step < plan.num_steps:  # a run that is complete writes nothing
        check_run_folder(loaded, plan)
        if not elsewhere:
            check_nvme_folder(loaded, plan)
    return PreparedRun(loaded, plan, tokenizer, data, identity, resume, choice.damaged, changed, allow_data_change)


def without_checkpoint(prepared: PreparedRun, damaged: tuple[PassedOver, ...]) -> PreparedRun:
    """The run as it is prepared where these checkpoints are not used: another one to continue from, its data with it.

    Raises CheckpointError where no other is whole.
    """
    choice = _choose(prepared.loaded, prepared.plan, prepared.identity, damaged)
    changed = _changed(prepared.loaded, choice)
    data = prepare_data(prepared.plan, prepared.tokenizer, choice.checkpoint, changed, prepared.allow_data_change)
    return replace(prepared, data=data, resume_from=choice.checkpoint, damaged=choice.damaged, changed=changed)


def _choose(
    loaded: LoadedConfig, plan: RunPlan, identity: RunIdentity, damaged: tuple[PassedOver, ...] = ()
) -> ResumeChoice:
    def check(folder: Path) -> Manifest:
        return _checked(folder, loaded, plan, identity)

    return choose_checkpoint(loaded, Path(loaded.config.run.folder) / "checkpoints", check, damaged)


def _changed(loaded: LoadedConfig, choice: ResumeChoice) -> tuple[Difference, ...]:
    return tuple(changed_settings(choice.checkpoint[0], loaded) or ()) if choice.checkpoint else ()


def check_checkpoint(prepared: PreparedRun, folder: Path) -> Manifest:
    """The manifest of a checkpoint that the run can go back to. Raises CheckpointError where it is not of this run."""
    return _checked(folder, prepared.loaded, prepared.plan, prepared.identity)


def _checked(folder: Path, loaded: LoadedConfig, plan: RunPlan, identity: RunIdentity) -> Manifest:
    manifest = check_belongs(folder, identity, loaded)
    tokens = plan.batches.tokens_after(manifest.step - 1)
    if tokens != manifest.tokens:  # the next step would not begin with the next sample
        settings = changed_settings(folder, loaded)
        done = Difference(f"tokens of its {manifest.step} steps", f"{manifest.tokens:,}", f"{tokens:,}")
        batch = [difference for difference in settings or () if difference.name in BATCH_KEYS]
        raise refusal(folder, "the steps done would be others", [done, *batch], settings)
    return manifest


def _identity(plan: RunPlan, tokenizer: Tokenizer) -> RunIdentity:
    return RunIdentity(
        spec=plan.spec,
        precision=plan.config.train.precision,
        seed=plan.config.run.seed,
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
