"""Loss on held-out text during training: Σ loss / Σ tokens over the same samples on every layout."""

from megagpt.data.batch import Batch
from megagpt.parallel.engine import Engine
from megagpt.parallel.mesh import Mesh
from megagpt.parallel.schedule import TokenLoss
from megagpt.training.data import Validation
from megagpt.training.prepare import PreparedRun
from megagpt.training.progress import Phase, Progress
from megagpt.training.totals import StepTotals, reduce_losses


def evaluate(
    prepared: PreparedRun, validation: Validation, mesh: Mesh, engine: Engine, progress: Progress
) -> StepTotals:
    """Evaluate on one corpus's held-out samples. Every rank calls it; reduces over all ranks at the end."""
    progress.mark(Phase.EVALUATE)
    train = prepared.plan.config.train
    stream = prepared.validation_stream(validation, mesh)
    losses: list[TokenLoss] = []
    group: list[Batch] = []
    for batch in stream.evaluation_batches(validation.num_sequences, train.micro_batch_size):
        group.append(batch)
        if len(group) == mesh.pipeline_size:  # as many at a time as fill the pipeline
            losses += engine.evaluate(group)
            group = []
            progress.mark(Phase.EVALUATE)
    if group:  # the interleaved schedule takes whole groups only: fill up with one that counts nothing
        empty = group[0]._replace(loss_mask=group[0].loss_mask * 0)
        losses += engine.evaluate(group + [empty] * (mesh.pipeline_size - len(group)))
    return reduce_losses(losses, mesh)
