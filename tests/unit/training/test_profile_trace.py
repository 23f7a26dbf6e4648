"""From a trace to the parts of a step: of hand-made GPU and CPU traces to the microsecond, and of a real one."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from megagpt.training.profile_groups import Group
from megagpt.training.profile_trace import BETWEEN_PASSES, described, product_flops, read_trace, short_name, step_times
from megagpt.training.progress import Phase

MAIN, BACKWARD = 100, 200


def event(category: str, name: str, start: float, end: float, thread: Any = MAIN, **args: Any) -> dict[str, Any]:
    """A complete event, in microseconds."""
    args = {key.replace("_", " "): value for key, value in args.items()}
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 1,
        "tid": thread,
        "ts": start,
        "dur": end - start,
        "args": args,
    }


def launched(number: int, at: float, name: str, start: float, end: float, thread: int = MAIN) -> list[dict[str, Any]]:
    """A kernel, and the call that launched it."""
    launch = event("cuda_runtime", "cudaLaunchKernel", at, at + 1, thread) | {"args": {"correlation": number}}
    kernel = event("kernel", name, start, end, thread=7) | {"args": {"correlation": number, "External id": number}}
    return [launch, kernel]


def gpu_trace() -> dict[str, Any]:
    """Two steps of 1000 µs in which the host runs ahead of the device."""
    events = []
    for step in range(2):
        t = 1000.0 * step
        n = 100 * step
        events += [
            event("user_annotation", f"step {step + 1}", t, t + 1000),
            event("user_annotation", Phase.DATA.value, t, t + 100),
            event("user_annotation", Phase.PASSES.value, t + 100, t + 600),
            event("user_annotation", "forward pass", t + 120, t + 200),
            event("user_annotation", "backward pass", t + 200, t + 500),
            event("user_annotation", Phase.UPDATE.value, t + 600, t + 1000),
            event("cpu_op", "aten::mm", t + 130, t + 140, External_id=n + 1, Input_Dims=[[64, 32], [32, 16]]),
            *launched(n + 1, t + 135, "nvjet_tst_128x64", t + 150, t + 350),
            event("cpu_op", "aten::gelu", t + 150, t + 160, External_id=n + 2, Input_Dims=[[64, 16]]),
            *launched(n + 2, t + 155, "void at::native::vectorized_elementwise_kernel<4, Gelu>", t + 350, t + 400),
            event(
                "cpu_op", "aten::bmm", t + 250, t + 260, BACKWARD, External_id=n + 3, Input_Dims=[[2, 8, 4], [2, 4, 6]]
            ),
            *launched(n + 3, t + 255, "sm90_xmma_gemm_bf16", t + 400, t + 550, BACKWARD),
            *launched(n + 4, t + 300, "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgs)", t + 500, t + 620),
            event("cuda_runtime", "cudaStreamSynchronize", t + 320, t + 330),
            event("cuda_runtime", "cudaMemcpyAsync", t + 331, t + 332),
            *launched(n + 5, t + 700, "void at::native::vectorized_elementwise_kernel<4, Mul>", t + 710, t + 810),
            event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", t + 810, t + 820, 7),
        ]
    return {"traceEvents": events, "distributedInfo": {"pg_config": [{"pg_name": "3", "pg_desc": "TENSOR"}]}}


def test_a_gpus_steps() -> None:
    times = step_times(gpu_trace())
    assert (times.num_steps, times.on_device) == (2, True)
    assert times.seconds == pytest.approx(1e-3)
    micro = {key: round(seconds * 1e6) for key, seconds in times.by_phase.items()}
    assert micro == {
        (Phase.DATA.value, Group.DATA): 100,  # the device has nothing to do
        (BETWEEN_PASSES, Group.HOST): 20,
        ("forward pass", Group.HOST): 30,
        ("forward pass", Group.GEMM): 200,
        ("forward pass", Group.POINTWISE): 50,  # launched there
        ("backward pass", Group.GEMM): 150,
        ("backward pass", Group.COMMUNICATION): 70,  # the other 50 hide behind the product
        (Phase.UPDATE.value, Group.HOST): 90 + 180,
        (Phase.UPDATE.value, Group.OPTIMIZER): 100 + 10,  # whatever kernel it is
    }
    assert sum(times.by_phase.values()) == pytest.approx(times.seconds)
    assert times.hidden_communication == pytest.approx(50e-6)
    assert times.gemm_flops == 2 * 64 * 32 * 16 + 2 * 2 * 8 * 4 * 6
    assert times.gemm_flops_per_second == pytest.approx(times.gemm_flops / 350e-6)
    assert times.num_kernels == 6
    assert [(waits.phase, waits.calls, round(waits.seconds * 1e6)) for waits in times.waits] == [
        ("backward pass", 1, 10)
    ]
    assert [(one.name, one.phase, one.calls) for one in times.collectives] == [
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "backward pass", 1)
    ]
    first = times.operators[0]
    assert (first.name, first.group, first.calls) == ("mm [64, 32] × [32, 16]: nvjet_tst_128x64", Group.GEMM, 1)
    assert first.seconds == pytest.approx(200e-6)


def test_what_nccl_tells_of_a_collective() -> None:
    trace = gpu_trace()
    for one in trace["traceEvents"]:
        if one["name"].startswith("nccl"):
            one["args"] |= {"Collective name": "allreduce", "Process Group Name": "3"}
    assert step_times(trace).collectives[0].name == "allreduce over TENSOR"


def test_a_cpus_steps() -> None:
    """The main thread's innermost operator, else communication that is under way, else Python."""
    events = [
        event("user_annotation", "step 4", 0, 1000),
        event("user_annotation", Phase.DATA.value, 0, 100),
        event("cpu_op", "aten::cat", 10, 20),
        event("user_annotation", Phase.PASSES.value, 100, 500),
        event("cpu_op", "MyLinear", 100, 400),
        event("cpu_op", "aten::matmul", 110, 300),
        event("cpu_op", "aten::mm", 120, 290, Input_Dims=[[4, 5], [5, 6]]),
        event("cpu_op", "c10d::allreduce_", 300, 310),
        event("user_annotation", "gloo:all_reduce", 250, 380, thread=999),
        event("cpu_op", "aten::mm", 150, 250, thread=555),  # another thread's
        event("user_annotation", Phase.UPDATE.value, 500, 1000),
        event("cpu_op", "aten::mul", 500, 600),
        event("user_annotation", "gloo:all_gather", 800, 900, thread=999),
    ]
    times = step_times({"traceEvents": events})
    assert not times.on_device
    assert {key: round(seconds * 1e6) for key, seconds in times.by_phase.items()} == {
        (Phase.DATA.value, Group.DATA): 100,
        (Phase.PASSES.value, Group.HOST): 10 + 20 + 100,
        (Phase.PASSES.value, Group.GEMM): 190,
        (Phase.PASSES.value, Group.COMMUNICATION): 80,
        (Phase.UPDATE.value, Group.OPTIMIZER): 400,  # Python and code that the profiler does not see included
        (Phase.UPDATE.value, Group.COMMUNICATION): 100,
    }
    assert times.hidden_communication == pytest.approx(50e-6)
    assert [one.name for one in times.operators] == ["mm [4, 5] × [5, 6]", "mul", "matmul", "cat"]
    assert times.operators[0].seconds == pytest.approx(170e-6)
    assert times.num_kernels == 0


def test_torchs_own_ranges_serve() -> None:
    """For benchmarks of other models: steps and the optimizer, as torch names them."""
    weight = torch.ones(32, 32, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for step in range(3):
            with record_function(f"ProfilerStep#{step}"):
                (torch.ones(8, 32) @ weight).sum().backward()
                optimizer.step()
    times = real_times(profiler)
    assert times.num_steps == 3
    assert sum(times.by_phase.values()) == pytest.approx(times.seconds)
    assert times.gemm_flops == 2 * (2 * 8 * 32 * 32)  # forward, and the weight's gradient
    assert times.group(Group.GEMM) > 0
    assert times.group(Group.OPTIMIZER) > 0


def real_times(profiler: Any) -> Any:
    """By way of a file, as traces go."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        plain = read_trace(path)
        packed = Path(folder) / "trace.json.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert read_trace(packed) == plain
    return step_times(plain)


def test_a_trace_without_steps() -> None:
    with pytest.raises(ValueError, match="no range that is named as a step"):
        step_times(json.loads('{"traceEvents": []}'))


def test_names() -> None:
    shapes = [[8, 4], [4, 2], [], [2]]
    assert described(event("cpu_op", "aten::mm", 0, 1, Input_Dims=shapes)) == "mm [8, 4] × [4, 2] × [2]"
    assert described(event("cpu_op", "aten::cat", 0, 1, Input_Dims=[[[8, 4], [4, 2]], []])) == "cat"
    assert described(event("cpu_op", "aten::cat", 0, 1)) == "cat"
    assert (
        short_name("void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float>(int)")
        == "cunn_SoftMaxForward"
    )
    assert short_name("x" * 100) == "x" * 59 + "…"


def test_product_flops() -> None:
    assert product_flops(event("cpu_op", "aten::addmm", 0, 1, Input_Dims=[[6], [4, 5], [5, 6], []])) == 240
    assert product_flops(event("cpu_op", "aten::mm", 0, 1)) == 0
    assert product_flops(event("cpu_op", "aten::matmul", 0, 1, Input_Dims=[[4, 5], [5, 6]])) == 0  # its mm counts
