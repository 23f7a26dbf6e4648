"""Everything about a run that can be read and checked before any process group starts. No communication.

In: the loaded configuration and the number of ranks. Out: PreparedRun with plan, tokenizer, data and the checkpoint to
continue from, or the first error that names what to fix.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megagpt.checkpoint.load import RunIdentity, check_belongs, latest_checkpoint
from megagpt.checkpoint.manifest import CheckpointLayout, Manifest, hash_file
from megagpt.config_file import LoadedConfig
from megagpt.data.check import check_dataset
from megagpt.data.entropy import count_labels, unigram_entropy
from megagpt.data.indexed import IndexedDataset, dataset_files
from megagpt.data.samples import SampleIndex
from megagpt.data.stream import BatchStream
from megagpt.environment import check_apex, check_megatron, check_wandb_login
from megagpt.errors import CheckpointError, ConfigError
from megagpt.parallel.launcher import launched_rank
from megagpt.plan import RunPlan, make_plan
from megagpt.tokenizer import Tokenizer, load_tokenizer
from megagpt.training.run_folder import check_run_folder

if TYPE_CHECKING:
    from megagpt.parallel.mesh import Mesh  # imports megatron-core, which takes seconds


@dataclass(frozen=True)
class Validation:
    """The held-out samples that every evaluation of a run reads."""

    samples: SampleIndex
    num_sequences: int  # the first ones of the split
    unigram_entropy: float  # of their labels, nats a token


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start on every rank."""

    plan: RunPlan
    tokenizer: Tokenizer
    training: SampleIndex
    validation: Validation | None  # None where data.split gives validation no share
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
        return self._stream(self.training, mesh)

    def validation_stream(self, mesh: "Mesh") -> BatchStream:
        """This rank's validation batches."""
        assert self.validation is not None, "this run has no validation split"
        return self._stream(self.validation.samples, mesh)

    def _stream(self, samples: SampleIndex, mesh: "Mesh") -> BatchStream:
        return BatchStream(
            samples,
            self.plan.spec.sequence_length,
            self.tokenizer.eod_id,
            self.plan.config.data.separate_documents,
            mesh.data_rank,
            mesh.data_size,
        )


def prepare_run(loaded: LoadedConfig, num_ranks: int) -> PreparedRun:
    """Read and check all of a run. Raises ConfigError, DataError or CheckpointError."""
    check_apex()
    check_megatron()
    config = loaded.config
    if config.log.wandb == "online" and launched_rank() == 0:  # the rank that logs in
        check_wandb_login()
    missing = [
        f"{loaded.describe(key)}: training needs {what}"
        for key, what in (("tokenizer.path", "a tokenizer file"), ("data.path", "an indexed dataset"))
        if loaded.value(key) is None
    ]
    tokenizer = load_tokenizer(config.tokenizer.path) if config.tokenizer.path else None
    try:
        plan = make_plan(loaded, num_ranks, tokenizer.vocab_size if tokenizer else None)
    except ConfigError as error:
        raise ConfigError(missing + error.problems) from None
    if missing:
        raise ConfigError(missing)
    assert tokenizer is not None
    assert config.data.path is not None
    dataset = IndexedDataset(config.data.path)
    check_dataset(dataset, tokenizer, plan.spec.vocab_size)
    split, length, seed = config.data.split, plan.spec.sequence_length, config.run.seed
    training = SampleIndex(dataset, "train", split, length, seed)
    validation = _validation(plan, SampleIndex(dataset, "valid", split, length, seed), tokenizer) if split[1] else None
    identity = _identity(plan, tokenizer, config.data.path)
    checkpoints = Path(config.run.folder) / "checkpoints"
    resume = _resume_from(loaded, plan, checkpoints, identity)
    if resume is None or resume[1].step < plan.num_steps:  # a run that is complete writes nothing
        check_run_folder(loaded, plan)
    return PreparedRun(plan, tokenizer, training, validation, identity, resume)


def _validation(plan: RunPlan, samples: SampleIndex, tokenizer: Tokenizer) -> Validation:
    config = plan.config
    most = config.evaluation.max_batches * config.train.batch_tokens // plan.spec.sequence_length
    num_sequences = min(samples.samples_per_epoch, most)
    eod_id = tokenizer.eod_id if config.data.separate_documents else None
    counts = count_labels(samples, num_sequences, plan.spec.vocab_size, eod_id)
    return Validation(samples, num_sequences, unigram_entropy(counts))


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


def _identity(plan: RunPlan, tokenizer: Tokenizer, data_path: str) -> RunIdentity:
    layout = plan.layout
    return RunIdentity(
        spec=plan.spec,
        layout=CheckpointLayout(
            tensor=layout.tensor,
            pipeline=layout.pipeline,
            virtual_stages=layout.virtual_stages,
            data=layout.data,
            sequence_parallel=layout.sequence_parallel,
            zero_stage=layout.zero_stage,
        ),
        precision=plan.config.train.precision,
        seed=plan.config.run.seed,
        tokenizer_fingerprint=tokenizer.fingerprint,
        data_fingerprint=_data_fingerprint(data_path, plan.config.data.split),
    )


def _data_fingerprint(data_path: str, split: tuple[float, float, float]) -> str:
    """sha256 of what decides the order of samples: every document's length (.idx), the size of .bin, the split."""
    bin_file, idx_file, _ = dataset_files(data_path)
    digest = hashlib.sha256(f"{bin_file.stat().st_size} {split}".encode())
    hash_file(digest, idx_file)
    return digest.hexdigest()
