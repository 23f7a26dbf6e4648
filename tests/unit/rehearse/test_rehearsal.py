"""A rehearsal's parts: ZeRO's shards, memory beside the plan's, counts of longer steps, errors."""

import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._guards import detect_fake_mode

from megagpt.config_file import load_config
from megagpt.errors import ConfigError, TrainingError
from megagpt.parallel.mesh import build_mesh, destroy_mesh
from megagpt.plan import RunPlan, make_plan
from megagpt.plan_cli import run_plan_command
from megagpt.plan_schedule import Pass, pass_order
from megagpt.rehearse import run
from megagpt.rehearse.collectives import Collective, scale_counts
from megagpt.rehearse.report import describe_order
from megagpt.rehearse.run import rehearse
from megagpt.rehearse.storages import PARTS, StorageLog
from megagpt.rehearse.world import fake_tensors, fake_world
from megagpt.rehearse.zero_shards import Span, check_flat_group, check_own_shard, check_zero_shards
from megagpt.training.build import build_engine

MODEL = [
    *("--model.num_layers=4", "--model.num_heads=4", "--model.hidden_size=128", "--model.sequence_length=64"),
    *("--model.vocab_size=1000", "--train.batch_tokens=1024", "--train.micro_batch_size=2"),
    *("--train.warmup_tokens=0", "--train.batch_ramp_tokens=0"),
]
PIPELINE = ["--parallel.tensor=2", "--parallel.pipeline=4", "--parallel.sequence_parallel=true"]


def small_plan(*arguments: str, gpus: int = 8) -> RunPlan:
    return make_plan(load_config(None, [*MODEL, *arguments]), gpus, None)


@pytest.mark.parametrize("rank", [0, 3, 7])
def test_memory_is_the_plans_but_for_what_it_leaves_out(rank):
    plan = small_plan(*PIPELINE)
    rehearsal = rehearse(plan, rank)
    planned = plan.memory[rehearsal.place.pipeline_rank]
    most = rehearsal.memory.most_by_part
    assert most["weights"] == planned.weights_bytes
    assert most["gradients"] == pytest.approx(planned.gradients_bytes, abs=4)  # DeepSpeed's norm of all
    assert most["optimizer"] == pytest.approx(planned.optimizer_bytes, abs=16)  # AdamW's counts of steps
    # received and sent hidden states and norms' statistics come on top; measured 10.0, 12.7 and 5.9 % on these
    # ranks of a narrow model, 3 % with 175B
    assert planned.activations_bytes <= most["activations"] <= 1.13 * planned.activations_bytes
    assert (most["logits"] > 0) == (planned.logits_bytes > 0)
    assert rehearsal.memory.peak.total_bytes == sum(rehearsal.memory.peak.by_part.values())
    assert rehearsal.memory.host_bytes == 0


def test_dropout_in_attention_makes_no_matrix_of_scores():
    """torch's CPU form of it would; the GPU's kernel does not."""
    without, with_dropout = (
        rehearse(
            small_plan(
                "--model.sequence_length=1024",
                f"--model.attention_dropout={share}",
                "--train.batch_tokens=4096",
                gpus=1,
            ),
            0,
            1,
        )
        for share in (0.0, 0.1)
    )
    assert with_dropout.memory.most_by_part["activations"] == without.memory.most_by_part["activations"]


def test_a_compiled_run_is_rehearsed_without_compiling():
    plain, compiled = (rehearse(small_plan(*PIPELINE, f"--train.compile={word}"), 1) for word in ("false", "true"))
    assert compiled.memory.most_by_part["activations"] == plain.memory.most_by_part["activations"]
    assert compiled.collectives == plain.collectives


def test_offloaded_state_is_in_host_memory():
    here = rehearse(small_plan("--parallel.zero_stage=3"))
    away = rehearse(small_plan("--parallel.zero_stage=3", "--parallel.offload_optimizer=cpu"))
    assert here.memory.host_bytes == 0
    assert away.memory.most_by_part["optimizer"] == away.memory.most_by_part["gradients"] == 0
    assert away.memory.host_bytes >= here.memory.most_by_part["optimizer"] + here.memory.most_by_part["gradients"]
    with pytest.raises(ConfigError, match='"nvme" cannot be rehearsed, as values would be written to files; rehearse'):
        rehearse(
            small_plan("--parallel.zero_stage=3", "--parallel.offload_parameters=nvme", "--parallel.nvme_folder=/x")
        )


@pytest.mark.parametrize(
    "arguments", [["--parallel.pipeline=2"], ["--parallel.pipeline=2", "--parallel.virtual_stages=2"], []]
)
def test_counts_of_a_whole_step_follow_from_short_ones(arguments):
    plan = small_plan(*arguments, gpus=2)
    unit = 2 if plan.layout.virtual_stages > 1 else 1
    whole = plan.batches.stages[-1].num_micro_batches
    short, all_of_it = rehearse(plan, 1, unit), rehearse(plan, 1, whole)
    assert short.micro_batches_run == (unit, 2 * unit, 3 * unit)
    assert all_of_it.micro_batches_run == (whole,)
    assert short.collectives == all_of_it.collectives
    assert whole > 3 * unit


def test_counts_that_do_not_grow_evenly_are_not_scaled():
    call = Collective("all-gather", "gradient", 8, "bfloat16", 64, "forward")
    counts = {2: Counter({call: 4}), 3: Counter({call: 6}), 4: Counter({call: 8})}
    assert scale_counts(counts, 10)[call] == 20
    counts[4][call] = 9
    with pytest.raises(
        TrainingError, match=r"have 4, 6 and 9 times all-gather over the gradient group.*--micro-batches 10"
    ):
        scale_counts(counts, 10)


@pytest.mark.parametrize(
    ("stage", "precision"), [(1, "bf16"), (1, "fp32"), (2, "bf16"), (2, "fp16"), (3, "bf16"), (0, "fp32")]
)
def test_zero_shards_cover_the_parameters_of_the_rank(stage, precision):
    plan = small_plan(
        f"--parallel.zero_stage={stage}",
        f"--train.precision={precision}",
        "--model.hidden_size=12",
        "--train.batch_tokens=896",
        gpus=7,
    )
    with fake_world(plan.layout, 3) as mesh, fake_tensors():
        shards = check_zero_shards(build_engine(plan, mesh))
    if stage == 0:
        assert shards is None
        return
    assert shards is not None
    assert (shards.ranks, shards.parameters) == (7, plan.parameters.total)
    assert shards.shard * 7 == shards.parameters + shards.padding
    assert shards.padding > 0


def test_a_sabotaged_zero_shard_is_named():
    plan = small_plan(gpus=4)
    with fake_world(plan.layout, 0) as mesh, fake_tensors():
        engine = build_engine(plan, mesh)
        partitions = engine.optimizer.bf16_partitioned_groups[0]
        flat, size = engine.optimizer.bf16_groups_flat[0], partitions[0].numel()
        for wrong, words in (
            ([flat[:0], *partitions[1:]], f"embedding.tokens.weight: elements 0 to {128 * 1024 - 1}, "),
            ([flat[: size - 1], *partitions[1:]], "layers.0.mlp.up.weight: elements 26623 to 26623 is in no shard"),
            ([flat[: size + 2], *partitions[1:]], "is in the shards of gradient rank 0 and gradient rank 1"),
            (partitions[:3], "there are 3 shards for 4 gradient ranks"),
        ):
            engine.optimizer.bf16_partitioned_groups[0] = wrong
            with pytest.raises(TrainingError) as raised:
                check_zero_shards(engine)
            assert words in str(raised.value)
        engine.optimizer.bf16_partitioned_groups[0] = partitions
        lost = engine.optimizer.bf16_groups[0].pop()
        name = next(name for name, parameter in engine.named_parameters.items() if parameter is lost)
        with pytest.raises(TrainingError, match=f"{name} is in no shard"):
            check_zero_shards(engine)


def test_spans_of_a_flat_buffer():
    parameters, shards = [Span(0, 6, "a"), Span(6, 9, "b")], [Span(0, 5, "rank 0"), Span(5, 10, "rank 1")]
    assert check_flat_group(parameters, shards, 10, 2) == 1
    for wrong_parameters, wrong_shards, words in (
        (parameters, [shards[0], Span(6, 10, "rank 1")], "a: elements 5 to 5 is in no shard"),
        (
            parameters,
            [Span(0, 7, "rank 0"), shards[1]],
            "a: elements 5 to 5, b: elements 0 to 0 is in the shards of",
        ),
        (parameters, [*shards[:1], Span(5, 12, "rank 1")], "the shard of rank 1 ends at 12, after the end 10"),
        ([parameters[0], Span(5, 9, "b")], shards, "a and b share 1 elements"),
        ([parameters[0], Span(6, 12, "b")], shards, "b ends at 12, after the end 10 of what is sharded"),
    ):
        with pytest.raises(TrainingError) as raised:
            check_flat_group(wrong_parameters, wrong_shards, 10, 2)
        assert words in str(raised.value)
    assert check_own_shard("a", 10, 4, 3) == 2
    with pytest.raises(TrainingError, match="a: elements 9 to 9 are on none of the 3 gradient ranks"):
        check_own_shard("a", 10, 3, 3)


def test_a_schedule_that_runs_in_another_order_is_an_error(monkeypatch):
    monkeypatch.setattr(run, "pass_order", lambda *sizes: tuple(reversed(pass_order(*sizes))))
    with pytest.raises(TrainingError, match=r"ran 2 passes, the plan has 2; the first that differs is number 1: Pass"):
        rehearse(small_plan())


def test_an_engine_with_other_slices_is_an_error(monkeypatch):
    real = run.slices_of_place
    monkeypatch.setattr(run, "check_coverage", lambda *arguments: SimpleNamespace())
    monkeypatch.setattr(run, "slices_of_place", lambda plan, place: real(plan, place)[1:])
    with pytest.raises(TrainingError, match=r"engine on rank 0 .* other slices than .*: embedding\.tokens\.weight"):
        rehearse(small_plan())


@pytest.mark.parametrize("order", [None, "2 forward, 6 × (forward, backward), 2 backward"])
def test_the_order_is_told_in_stretches(order):
    if order:
        assert describe_order(pass_order(4, 1, 8, 1), 1) == order
    else:
        assert describe_order(pass_order(1, 1, 3, 0), 1) == "3 × (forward, backward)"
        assert describe_order(pass_order(2, 2, 2, 1), 2).startswith("2 F0, 1 F1, 1 B1, 1 F1, 1 B1, 2 B0 (F")
        assert "more" in describe_order(pass_order(4, 4, 32, 0), 4)
        assert describe_order((Pass("forward", 0, 0), Pass("backward", 0, 0)), 1) == "1 × (forward, backward)"


def test_nothing_is_left_of_a_rehearsal(monkeypatch):
    """The same process can rehearse again with the same outcome, and train for real afterwards."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    environment, hook = dict(os.environ), sys.excepthook
    plan = small_plan(*PIPELINE)
    first, second = rehearse(plan, 5), rehearse(plan, 5)
    assert (first.collectives, first.memory, first.order) == (second.collectives, second.memory, second.order)
    assert not dist.is_initialized()
    assert detect_fake_mode() is None
    assert dict(os.environ) == environment
    assert sys.excepthook is hook
    with pytest.raises(ConfigError):
        rehearse(plan, 8)
    mesh = build_mesh(1, 1)
    try:
        engine = build_engine(small_plan(gpus=1), mesh)
        assert type(next(engine.module.parameters())) is torch.nn.Parameter
        assert engine.local_gradients_finite()
    finally:
        destroy_mesh()


def test_a_storage_counts_once_and_until_its_last_tensor_dies():
    log = StorageLog(frozenset())
    one = torch.zeros(256)
    log.see(one)
    log.see(one[3:])
    log.do("forward", "forward pass 1")
    two, three = torch.zeros(1024), torch.zeros(64)
    log.see(two)
    log.see(three)
    del three
    log.do("between", "between passes")
    begin = log.clock
    del two
    log.do("step", "after the schedule")
    log.mark("weights", [one])
    whole, end = log.use(0, log.clock), log.use(begin + 1, log.clock)
    assert whole.most_by_part | {"activations": 4096} == whole.most_by_part
    by_part = dict.fromkeys(PARTS, 0) | {"weights": 1024, "activations": 4096, "temporary": 256}
    assert whole.peak == (1024 + 4096 + 256, by_part, "forward pass 1")
    assert end.peak.total_bytes == 1024


def test_one_rank_of_175b():
    """The last stage on 1024 GPUs, three short steps: the numbers of the whole step."""
    plan = make_plan(load_config("gpt3-175b", []), 1024, None)
    rehearsal = rehearse(plan, 1023, 1)
    assert rehearsal.coverage.model == 174_604_836_864
    assert rehearsal.zero is not None
    assert rehearsal.zero.parameters == plan.parameters.per_rank[15]
    assert rehearsal.micro_batches_run == (1, 2, 3)
    per_layer = 4 * 6 * 384  # two linears each of attention and feed-forward, 6 layers, 384 micro-batches
    calls = rehearsal.collectives
    tensor = {(c.kind, c.during): n for c, n in calls.items() if c.group == "tensor" and c.num_bytes > 1e7}
    assert tensor["reduce-scatter", "forward"] == per_layer / 2 + 384  # and the head, which makes its gradients there
    assert tensor["all-gather", "forward"] == per_layer / 2 + 384  # and the head
    p2p = {c.kind: (n, c.num_bytes) for c, n in calls.items() if c.kind in ("send", "receive")}
    hidden = 2 * 2048 * 12288 // 8
    assert p2p == {"send": (384, hidden), "receive": (384, hidden)}


def test_the_command(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text('[cluster]\ngpu = "H200"\nnum_gpus = 8\n')
    arguments = [str(path), *MODEL, *PIPELINE]
    assert run_plan_command([*arguments, "--rehearse"]) == 0
    out = capsys.readouterr().out
    for words in (
        "Rehearsal of rank 0 of 8 (tensor 0, data 0, pipeline 0): tensor 2 × pipeline 4 × data 1, ZeRO 1",
        "every element of every parameter once.",
        "ZeRO 1: 1 gradient ranks have shards of",
        "The GPU has 139.7 GiB",
        "8 micro-batches: 3 forward, 5 × (forward, backward), 3 backward.",
        "They ran in the order that is planned.",
        "(p - 1) / (v m) is 37.50%",
    ):
        assert words in out, words
    assert max(len(line) for line in out.splitlines() if "│" in line) <= 120
    for wrong, words in (
        (["--rank", "3"], "--rank 3 is about a rehearsal; add --rehearse"),
        (["--micro-batches", "3"], "--micro-batches 3 is about a rehearsal; add --rehearse"),
        (["--rehearse", "--rank", "8"], "--rank 8 is none of the run's 8 ranks; use 0 to 7"),
        (["--rehearse", "--rank", "-1"], "--rank -1 is none of the run's 8 ranks; use 0 to 7"),
        (
            ["--rehearse", "--micro-batches", "9"],
            "--micro-batches 9 cannot be rehearsed: use a number from 1 to 8, whic",
        ),
        (
            ["--rehearse", "--micro-batches", "5", "--parallel.pipeline=2", "--parallel.virtual_stages=2"],
            "use a multiple of 2 (interleaved schedule) from 2 to 4, which is the whole step",
        ),
    ):
        status = run_plan_command([*arguments, *wrong])
        error = capsys.readouterr().err
        assert (status, words in error) == (2, True), error


def test_it_is_silent_but_for_its_report(tmp_path):
    """Neither DeepSpeed nor torch nor megatron-core writes anything in between."""
    plan = ["plan", "run.toml", "--gpus", "2", "--rehearse", *MODEL]
    command = [sys.executable, "-m", "megagpt", *plan]
    (tmp_path / "run.toml").write_text("")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    after = done.stdout[done.stdout.index("fragmentation come on top.") :]
    assert after.splitlines()[2].startswith("Rehearsal of rank 0 of 2")
