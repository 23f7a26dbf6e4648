"""Products by either library against float64, forward and backward, and the choice between them."""

import random
from pathlib import Path

import pytest
import torch

from megagpt.kernels import matmul
from megagpt.kernels.matmul import fast_linear, prefers_onednn, product, takes_onednn


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(matmul, "prefers_onednn", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("trial", range(8))
def test_equals_float64(onednn: bool, trial: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    tokens, inputs, outputs = (random.choice([1, 3, 16, 65, 300]) for _ in range(3))
    values = torch.randn(2, tokens, inputs, requires_grad=True)
    weight, bias = torch.randn(outputs, inputs, requires_grad=True), torch.randn(outputs, requires_grad=True)
    wide = [leaf.detach().double().requires_grad_() for leaf in (values, weight, bias)]
    output = fast_linear(values, weight, bias)
    right = wide[0] @ wide[1].t() + wide[2]
    gradient = torch.randn(output.shape)
    found = [output, *torch.autograd.grad(output, (values, weight, bias), gradient)]
    wanted = [right, *torch.autograd.grad(right, wide, gradient.double())]
    for ours, exact in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - exact).detach().norm() / exact.detach().norm()) < 3e-6  # worst of 400: 6.8e-7


def test_turned_matrices(onednn: bool) -> None:
    left, right = torch.randn(20, 7), torch.randn(5, 20)
    torch.testing.assert_close(product(left.t(), right.t()), left.t() @ right.t(), rtol=1e-5, atol=1e-5)


def test_other_dtypes_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "prefers_onednn", lambda: True)
    assert takes_onednn(torch.device("cpu"), torch.float32)
    assert not takes_onednn(torch.device("cpu"), torch.bfloat16)
    assert not takes_onednn(torch.device("cuda"), torch.float32)
    left = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(product(left, left.t()), left @ left.t())


@pytest.mark.parametrize(
    ("vendor", "flags", "wanted"),
    [
        ("AuthenticAMD", "avx2 avx512f", True),
        ("AuthenticAMD", "avx2", False),
        ("GenuineIntel", "avx2 avx512f", False),
    ],
)
def test_the_choice(vendor: str, flags: str, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n\n", encoding="utf-8")
    monkeypatch.setattr(matmul, "_CPU_INFO", path)
    prefers_onednn.cache_clear()
    try:
        assert prefers_onednn() is wanted
    finally:
        prefers_onednn.cache_clear()
