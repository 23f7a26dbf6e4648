"""Every layout reads the same sequences in the same order: a property of many random plans, without processes."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megagpt.config_file import load_config
from megagpt.data.batch import Batch
from megagpt.data.stream import BatchStream
from megagpt.errors import ConfigError
from megagpt.plan import RunPlan, make_plan

EOD = 0
NUM_PLANS = 300


class Numbered:
    """Samples whose tokens follow from the sample's number; about every fifth token ends a document."""

    samples_per_epoch = 10**6

    def __init__(self, sequence_length: int) -> None:
        self.width = sequence_length + 1

    def tokens_of_many(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n, S+1]: each token is a number of its own, or EOD."""
        tokens = samples[:, None] * self.width + np.arange(self.width) + 1
        return np.where(tokens * 2654435761 % 1013 < 200, EOD, tokens)


def random_settings(chosen: random.Random) -> tuple[int, list[str], list[str]]:
    """Ranks, arguments of the layout, and arguments that say what is computed."""
    tensor, context = chosen.choice((1, 1, 2, 4)), chosen.choice((1, 1, 2, 4))
    pipeline, virtual = chosen.choice(((1, 1), (1, 1), (2, 1), (4, 1), (3, 1), (2, 2), (2, 3)))
    data, length = chosen.choice((1, 1, 2, 3, 4, 8)), chosen.choice((8, 16, 32))
    start = chosen.choice((1, 2, 3, 4, 6)) * data
    batch = start * chosen.choice((1, 2, 3, 4, 8))
    layout = [
        f"--parallel.tensor={tensor}",
        f"--parallel.context={context}",
        f"--parallel.pipeline={pipeline}",
        f"--parallel.virtual_stages={virtual}",
        f"--parallel.sequence_parallel={str(tensor > 1 and chosen.random() < 0.5).lower()}",
        f"--parallel.zero_stage={chosen.choice((1, 2, 3)) if pipeline == 1 else 1}",
        f"--train.micro_batch_size={chosen.choice((1, 1, 2, 3, 4))}",
    ]
    computed = [
        *("--model.num_layers=6", "--model.num_heads=16", "--model.hidden_size=64", "--model.vocab_size=100"),
        *(f"--model.sequence_length={length}", f"--train.batch_tokens={batch * length}", "--train.steps=50"),
        f"--train.batch_ramp_start_tokens={start * length}",
        f"--train.batch_ramp_tokens={chosen.choice((0, 1, 5, 20)) * batch * length}",
        f"--data.separate_documents={str(chosen.random() < 0.5).lower()}",
    ]
    return tensor * context * pipeline * data, layout, computed


def global_batch(plan: RunPlan, step: int) -> Batch:
    """What all ranks of a plan read in a step, put together: parts of sequences, micro-batches, data ranks."""
    layout, length = plan.layout, plan.spec.sequence_length
    separate = plan.config.data.separate_documents
    blocks: list[Batch] = []
    for data_rank in range(layout.data):
        parts = [
            BatchStream(Numbered(length), length, EOD, separate, data_rank, layout.data, rank, layout.context)
            for rank in range(layout.context)
        ]
        for of_context in zip(*(part.micro_batches(plan.step_batch(step)) for part in parts), strict=True):
            blocks.append(join(list(of_context), dim=1))
    return join(blocks, dim=0)


def join(batches: list[Batch], dim: int) -> Batch:
    """Batches side by side. Over parts of sequences `documents` are whole on every rank, and must be equal."""
    fields = [torch.cat([batch[field] for batch in batches], dim=dim) for field in range(4)]  # type: ignore[misc]
    documents: Any = [batch.documents for batch in batches]
    if documents[0] is None:
        assert all(found is None for found in documents)
        return Batch(*fields, None)
    if dim == 1:
        assert all(torch.equal(found, documents[0]) for found in documents)
        return Batch(*fields, documents[0])
    return Batch(*fields, torch.cat(documents))


def test_every_layout_reads_what_one_rank_reads() -> None:
    chosen = random.Random(20260725)
    compared, ramps, kinds = 0, 0, set()
    while compared < NUM_PLANS:
        num_ranks, layout, computed = random_settings(chosen)
        try:
            plan = make_plan(load_config(None, [*computed, *layout]), num_ranks, None)
        except ConfigError:
            continue
        single = make_plan(load_config(None, computed), 1, None)
        for step in (0, 1, chosen.randrange(2, 12), chosen.randrange(12, 10**4)):
            assert plan.step_batch(step)[:3] == single.step_batch(step)[:3]
            assert plan.batches.tokens_after(step) == single.batches.tokens_after(step)
            assert plan.learning_rate(step) == single.learning_rate(step)
            found, wanted = global_batch(plan, step), global_batch(single, step)
            for field, one, other in zip(Batch._fields, found, wanted, strict=True):
                assert (one is None and other is None) or torch.equal(one, other), (field, step, num_ranks, layout)
            first = plan.step_batch(step).first_sample
            expected = Numbered(plan.spec.sequence_length).tokens_of_many(first + np.arange(len(found.tokens)))
            assert found.tokens.tolist() == expected[:, :-1].tolist()
            assert found.labels.tolist() == expected[:, 1:].tolist()
        compared += 1
        ramps += len(plan.batches.stages) > 1
        kinds.add(
            (plan.layout.context > 1, plan.layout.data > 1, plan.layout.virtual_stages > 1, found.documents is None)
        )
    assert ramps > NUM_PLANS // 4
    assert len(kinds) == 16, "every combination of context, data, interleaving and documents must be among them"


@pytest.mark.parametrize("wrong", ["data_rank", "context_rank"])
def test_the_comparison_notices_two_ranks_that_read_the_same(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--model.num_layers=2", "--model.num_heads=2", "--model.hidden_size=8", "--model.vocab_size=100"]
    arguments += ["--model.sequence_length=8", "--train.batch_tokens=64", "--train.steps=2"]
    plan = make_plan(load_config(None, [*arguments, "--parallel.context=2"]), 4, None)
    single = make_plan(load_config(None, arguments), 1, None)
    assert torch.equal(global_batch(plan, 1).tokens, global_batch(single, 1).tokens)
    build = BatchStream.__init__

    def mistaken(self: BatchStream, *arguments: Any) -> None:
        build(self, *arguments)
        setattr(self, wrong, 0)

    monkeypatch.setattr(BatchStream, "__init__", mistaken)
    assert not torch.equal(global_batch(plan, 1).tokens, global_batch(single, 1).tokens)
