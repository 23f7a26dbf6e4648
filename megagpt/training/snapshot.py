"""What a checkpoint of this moment holds: the run's identity, progress, and this rank's tensors."""

import math
from pathlib import Path

from megagpt import __version__
from megagpt.checkpoint.fault_history import FaultHistory
from megagpt.checkpoint.manifest import FORMAT_VERSION, CheckpointLayout, Manifest
from megagpt.checkpoint.save import CheckpointContents
from megagpt.config_file import dump_toml
from megagpt.parallel.engine import Engine
from megagpt.plan import RunPlan
from megagpt.tokenizer.load import FILE_NAMES
from megagpt.training.prepare import PreparedRun


def take_snapshot(
    prepared: PreparedRun, engine: Engine, step: int, loss: float, faults: FaultHistory
) -> CheckpointContents:
    """Contents of the checkpoint after `step` steps. Views: write them before the next step."""
    plan, identity, phases = prepared.plan, prepared.identity, prepared.data.training.phases
    tokenizer_path = Path(prepared.tokenizer.path)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        megagpt_version=__version__,
        step=step,
        tokens=plan.batches.tokens_after(step - 1),
        loss=loss if math.isfinite(loss) else None,
        spec=plan.spec,
        layout=checkpoint_layout(plan),
        precision=identity.precision,
        seed=identity.seed,
        tokenizer_fingerprint=identity.tokenizer_fingerprint,
        tokenizer_file=FILE_NAMES[prepared.tokenizer.kind],
        data_fingerprint=phases[-1].corpora[0].fingerprint if len(phases[-1].corpora) == 1 else None,
        files={},
        tokenizer_kind=prepared.tokenizer.kind,
        optimizer=engine.progress(),
        phases=phases,
        faults=faults,
    )
    return CheckpointContents(manifest, dump_toml(plan.config), tokenizer_path, engine.owned_pieces())


def checkpoint_layout(plan: RunPlan) -> CheckpointLayout:
    """The layout of a plan as a manifest records it."""
    layout = plan.layout
    return CheckpointLayout(
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        virtual_stages=layout.virtual_stages,
        data=layout.data,
        sequence_parallel=layout.sequence_parallel,
        zero_stage=layout.zero_stage,
        context=layout.context,
        layers=layout.uneven_layers,
    )
