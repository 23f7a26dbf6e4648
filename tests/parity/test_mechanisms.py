"""What the matrix leaves out is the same model too, in fp32.

Offloading, unequal stages, recomputation, the batch's ramp and cut, documents kept apart, torch.compile.
"""

import pytest

from tests.parity.compare import Case, check
from tests.parity.measured import Measured

ZERO_0, ZERO_2, ZERO_3 = (f"--parallel.zero_stage={stage}" for stage in (0, 2, 3))
TENSOR_2, CONTEXT_2, CONTEXT_4 = "--parallel.tensor=2", "--parallel.context=2", "--parallel.context=4"
SEQUENCE = "--parallel.sequence_parallel=true"
PIPELINE_2, PIPELINE_3 = "--parallel.pipeline=2", "--parallel.pipeline=3"
INTERLEAVED = (PIPELINE_2, "--parallel.virtual_stages=2", "--train.micro_batch_size=1")
OPTIMIZER_ON_CPU, PARAMETERS_ON_CPU = "--parallel.offload_optimizer=cpu", "--parallel.offload_parameters=cpu"
BOTH_ON_CPU = (ZERO_3, OPTIMIZER_ON_CPU, PARAMETERS_ON_CPU)
SELECTIVE, FULL = "--train.recompute=selective", "--train.recompute=full"
SECOND = (FULL, "--train.recompute_every=2")

LAYOUTS = {
    "one rank, ZeRO 0": Case(1, (ZERO_0,)),
    "one rank, ZeRO 1": Case(1, ()),
    "one rank, ZeRO 2": Case(1, (ZERO_2,)),
    "one rank, ZeRO 3": Case(1, (ZERO_3,)),
    "three pipeline stages": Case(3, (PIPELINE_3,)),
    "context 4": Case(4, (CONTEXT_4,)),
    "data 4, ZeRO 2": Case(4, (ZERO_2,)),
    "data 4, ZeRO 3": Case(4, (ZERO_3,)),
    "no clipping, ZeRO 0": Case(2, (ZERO_0,), ("--train.clip_grad=0",)),
    "no clipping, ZeRO 3": Case(2, (ZERO_3,), ("--train.clip_grad=0",)),
    "erf": Case(1, (), ("--model.activation=gelu_erf",)),
}
OFFLOADED = {
    "optimizer, ZeRO 1": Case(2, (OPTIMIZER_ON_CPU,)),
    "optimizer, ZeRO 2": Case(2, (OPTIMIZER_ON_CPU, ZERO_2)),
    "optimizer, ZeRO 3": Case(2, (OPTIMIZER_ON_CPU, ZERO_3)),
    "optimizer, ZeRO 1, tensor 2": Case(4, (OPTIMIZER_ON_CPU, TENSOR_2, SEQUENCE)),
    "optimizer, ZeRO 2, tensor 2": Case(4, (OPTIMIZER_ON_CPU, ZERO_2, TENSOR_2, SEQUENCE)),
    "optimizer, ZeRO 1, pipeline 2": Case(4, (OPTIMIZER_ON_CPU, PIPELINE_2)),
    "optimizer, ZeRO 1, interleaved": Case(2, (OPTIMIZER_ON_CPU, *INTERLEAVED)),
    "optimizer, ZeRO 1, context 2": Case(2, (OPTIMIZER_ON_CPU, CONTEXT_2)),
    "parameters, ZeRO 3": Case(2, (PARAMETERS_ON_CPU, ZERO_3)),
    "parameters, ZeRO 3, context 2": Case(2, (PARAMETERS_ON_CPU, ZERO_3, CONTEXT_2)),
    "both, ZeRO 3": Case(2, BOTH_ON_CPU),
    "both, ZeRO 3, tensor 2": Case(4, (*BOTH_ON_CPU, TENSOR_2, SEQUENCE)),
}
UNEVEN = {
    "stages of 1 and 3 layers": Case(2, (PIPELINE_2, "--parallel.stage_layers=1,3")),
    "stages of 3 and 1 layers, ZeRO 0, data 2": Case(4, (PIPELINE_2, "--parallel.stage_layers=3,1", ZERO_0)),
    "5 layers in 2 stages, tensor 2": Case(4, (PIPELINE_2, TENSOR_2, SEQUENCE), ("--model.num_layers=5",)),
    "5 layers in 2 x 2 chunks": Case(2, INTERLEAVED, ("--model.num_layers=5",)),
    "chunks of 2, 1, 1 and 2 layers, data 2": Case(
        4, (*INTERLEAVED, "--parallel.stage_layers=2,1,1,2"), ("--model.num_layers=6",)
    ),
}
RECOMPUTED = {
    "selective": Case(1, (SELECTIVE,)),
    "full": Case(1, (FULL,)),
    "every second": Case(1, SECOND),
    "selective, tensor 2": Case(2, (SELECTIVE, TENSOR_2, SEQUENCE)),
    "full, tensor 2": Case(2, (FULL, TENSOR_2, SEQUENCE)),
    "selective, context 2": Case(2, (SELECTIVE, CONTEXT_2)),
    "full, context 2": Case(2, (FULL, CONTEXT_2)),
    "full, pipeline 2": Case(2, (FULL, PIPELINE_2)),
    "every second, interleaved": Case(2, (*SECOND, *INTERLEAVED)),
    "full, ZeRO 2": Case(2, (FULL, ZERO_2)),
    "selective, ZeRO 3": Case(2, (SELECTIVE, ZERO_3)),
    "full, ZeRO 3": Case(2, (FULL, ZERO_3)),
    "every second, both offloaded": Case(2, (*SECOND, *BOTH_ON_CPU)),
}
# 2, 2, 4, 6 and 8 sequences a step, so the number of micro-batches changes while the run goes on
RAMP = ("--train.batch_ramp_start_tokens=32", "--train.batch_ramp_tokens=192", "--train.steps=5")
RAMPED = {
    "one rank": Case(1, (), RAMP, steps=5),
    "data 2, ZeRO 2": Case(2, (ZERO_2, "--train.micro_batch_size=1"), RAMP, steps=5),
    "data 2, ZeRO 3": Case(2, (ZERO_3, "--train.micro_batch_size=1"), RAMP, steps=5),
    "pipeline 2": Case(2, (PIPELINE_2, "--train.micro_batch_size=4"), RAMP, steps=5),
    "pipeline 2, data 2": Case(4, (PIPELINE_2,), RAMP, steps=5),
    "interleaved": Case(2, INTERLEAVED, RAMP, steps=5),
    "context 2, tensor 2": Case(4, (CONTEXT_2, TENSOR_2), RAMP, steps=5),
}
MICRO_BATCHES = {
    f"{size} of 8 sequences{words}": Case(ranks, (f"--train.micro_batch_size={size}", *layout))
    for size in (1, 4)
    for words, ranks, layout in (
        ("", 1, ()),
        (", ZeRO 0", 2, (ZERO_0,)),
        (", ZeRO 2", 2, (ZERO_2,)),
        (", ZeRO 3", 2, (ZERO_3,)),
        (", optimizer offloaded, ZeRO 2", 2, (ZERO_2, OPTIMIZER_ON_CPU)),
        (", pipeline 2", 2, (PIPELINE_2,)),
    )
}
DOCUMENTS = {
    "one rank": Case(1, (), separate_documents=True),
    "tensor 2": Case(2, (TENSOR_2, SEQUENCE), separate_documents=True),
    "pipeline 2": Case(2, (PIPELINE_2,), separate_documents=True),
    "interleaved, context 2": Case(4, (*INTERLEAVED, CONTEXT_2), separate_documents=True),
    "context 2": Case(2, (CONTEXT_2,), separate_documents=True),
    "context 2, tensor 2": Case(4, (CONTEXT_2, TENSOR_2, SEQUENCE), separate_documents=True),
    "ZeRO 3": Case(2, (ZERO_3,), separate_documents=True),
    "context 2, ZeRO 3": Case(4, (CONTEXT_2, ZERO_3), separate_documents=True),
}
COMPILE = "--train.compile=true"
COMPILED = {
    "tensor 2, recomputed": Case(2, (COMPILE, TENSOR_2, SEQUENCE, FULL)),
    "pipeline 2, data 2": Case(4, (COMPILE, PIPELINE_2)),
    "ZeRO 3": Case(2, (COMPILE, ZERO_3)),
}
ALL = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("layout", LAYOUTS),
        ("offloaded", OFFLOADED),
        ("uneven", UNEVEN),
        ("recomputed", RECOMPUTED),
        ("ramp", RAMPED),
        ("micro-batches", MICRO_BATCHES),
        ("documents apart", DOCUMENTS),
        ("compiled", COMPILED),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", ALL)
def test_a_mechanism_equals_the_reference(name: str, measured: Measured) -> None:
    check(ALL[name], "fp32", measured, name)
