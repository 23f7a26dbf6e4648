"""Adding gradients up and AdamW's update against the formulas in float64, and against torch's own AdamW."""

import random

import pytest
import torch

from megagpt.kernels import optimizer_step
from megagpt.kernels.optimizer_step import AdamWStep, add_gradient, reference_adamw, update_masters


@pytest.fixture(params=["native", "torch"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms; torch's is what runs on a GPU, and where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(optimizer_step, "_optimizer", None)
    elif optimizer_step._optimizer is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


def fresh_seed() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    torch.manual_seed(seed)


@pytest.mark.parametrize("count", [1, 37, 4096, 300_001])
def test_gradients_add_up_in_float32(count: int) -> None:
    fresh_seed()
    total = torch.full((count,), float("nan"))
    gradients = [torch.randn(count).bfloat16() for _ in range(3)]
    for number, gradient in enumerate(gradients):
        add_gradient(total, gradient, is_first=number == 0)
    assert torch.equal(total, (gradients[0].float() + gradients[1].float()) + gradients[2].float())


@pytest.mark.parametrize("count", [1, 37, 300_001])
def test_three_updates_equal_the_formula(count: int) -> None:
    fresh_seed()
    master = torch.randn(count)
    weight = torch.empty(count, dtype=torch.bfloat16)
    moments = torch.zeros(count), torch.zeros(count)
    wide = master.double(), torch.zeros(count).double(), torch.zeros(count).double()
    for number in range(1, 4):
        gradient = torch.randn(count) * 10 ** random.uniform(-4, 2)
        step = AdamWStep(number, 10 ** random.uniform(-4, -2), 0.9, 0.95, 1e-8, 0.1)
        scale = random.uniform(0.01, 1)
        reference_adamw(wide[0], gradient.double(), wide[1], wide[2], step, scale)
        update_masters(master, weight, gradient.clone(), *moments, step, scale)
        assert torch.equal(weight, master.bfloat16())
    for ours, right in zip((master, *moments), wide, strict=True):
        # worst of 300 random runs: 2.5e-7, one rounding of the sum of all
        assert float((ours - right).norm() / right.norm()) < 2e-6


def test_equals_torchs_adamw_over_many_updates() -> None:
    fresh_seed()
    master, weight = torch.randn(1000), torch.empty(1000, dtype=torch.bfloat16)
    moments = torch.zeros(1000), torch.zeros(1000)
    parameter = torch.nn.Parameter(master.clone())
    adam = torch.optim.AdamW([parameter], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    for number in range(1, 51):
        gradient = torch.randn(1000)
        parameter.grad = gradient.clone()
        adam.step()
        update_masters(master, weight, gradient, *moments, AdamWStep(number, 3e-3, 0.9, 0.95, 1e-8, 0.1), 1.0)
    torch.testing.assert_close(master, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_numbers_that_are_none_stay_none() -> None:
    master, weight = torch.tensor([float("nan"), 1.0]), torch.zeros(2, dtype=torch.bfloat16)
    step = AdamWStep(1, 1e-3, 0.9, 0.95, 1e-8, 0.1)
    update_masters(master, weight, torch.zeros(2), torch.zeros(2), torch.zeros(2), step, 1.0)
    assert weight.isnan().tolist() == [True, False]


def test_threads_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_seed()
    gradient, start = torch.randn(1 << 20), torch.randn(1 << 20)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        master, weight = start.clone(), torch.zeros(1 << 20, dtype=torch.bfloat16)
        step = AdamWStep(1, 1e-3, 0.9, 0.95, 1e-8, 0.1)
        update_masters(master, weight, gradient.clone(), torch.zeros(1 << 20), torch.zeros(1 << 20), step, 0.5)
        total = torch.zeros(1 << 20)
        add_gradient(total, gradient.bfloat16(), is_first=True)
        add_gradient(total, gradient.bfloat16(), is_first=False)
        results.append((master, weight, total))
    assert all(torch.equal(alone, together) for alone, together in zip(*results, strict=True))
