"""How far a layout is from the plain reference: loss, gradient norm, every named gradient and every weight.

In: what each rank saw (LayoutResult) and the case it ran. Out: the worst relative difference of each quantity and where
it was. The reference is computed in float64, so all of a difference is the layout's.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from megagpt.model.init import local_slice
from megagpt.model.names import parameter_shapes
from megagpt.model.reference import initial_parameters, reference_loss
from megagpt.plan import RunPlan
from tests.parallel.cases import LayoutResult, global_batch, rows, run_layout, small_plan
from tests.parallel.harness import run_ranks
from tests.parity.measured import Difference, Measured


class Case(NamedTuple):
    """A run to compare. `layout` must change nothing that is computed; the reference obeys `model` too."""

    num_ranks: int
    layout: tuple[str, ...]
    model: tuple[str, ...] = ()
    separate_documents: bool = False
    steps: int = 3

    def arguments(self, precision: str) -> list[str]:
        """All arguments of the run beyond the small model's own."""
        # fp16: a scale at which no step overflows
        return [f"--train.precision={precision}", "--train.fp16_initial_scale_power=8", *self.model, *self.layout]


class Bounds(NamedTuple):
    """Largest relative differences allowed."""

    loss: float
    norm: float
    gradient: float
    weight: float


# Relative differences from the float64 reference: of each step's loss and global gradient norm as such, of a gradient
# or weight ‖found − expected‖₂ / ‖expected‖₂ over one rank's slice of one named parameter. Not of its largest element:
# AdamW divides each element by the root of its own second moment, so an element whose gradient is near epsilon moves by
# (rounding of the tensor's large gradients) / epsilon of a step, however exact the layout is: with an epsilon of 1e-4
# one element of a bias differed by 2e-5 of the largest. Over the whole parameter such elements weigh what they are.
# Measured worst over all runs of `pytest tests/parity`, which prints them at its end:
#        loss     norm     gradient  weight
# fp32   9.1e-8   1.3e-7   5.6e-7    1.6e-6
# bf16   2.0e-5   1.9e-3   1.6e-2    1.1e-2
# fp16   3.4e-6   1.8e-4   2.0e-3    1.2e-3
BOUNDS = {
    "fp32": Bounds(loss=1e-6, norm=1e-6, gradient=5e-6, weight=5e-6),
    "bf16": Bounds(loss=1e-4, norm=6e-3, gradient=5e-2, weight=4e-2),
    "fp16": Bounds(loss=1e-5, norm=1e-3, gradient=6e-3, weight=4e-3),
}


class Reference(NamedTuple):
    """What the plain model saw, in float64."""

    losses: list[float]
    grad_norms: list[float]
    gradients: dict[str, Tensor]  # of the first step
    weights: dict[str, Tensor]  # after the last


@cache
def reference(model: tuple[str, ...], separate_documents: bool, steps: int) -> Reference:
    """The plain model trained on one process with torch alone."""
    plan = small_plan(1, list(model))
    spec, train = plan.spec, plan.config.train
    infos = parameter_shapes(spec)
    parameters = {name: value.detach().double().requires_grad_() for name, value in initial_parameters(spec, 7).items()}
    groups = [
        {"params": [p for n, p in parameters.items() if infos[n].decay], "weight_decay": train.weight_decay},
        {"params": [p for n, p in parameters.items() if not infos[n].decay], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.epsilon)
    losses, norms, gradients = [], [], {}
    for step in range(steps):
        optimizer.zero_grad()
        batch = rows(global_batch(step, separate_documents), 0, plan.step_batch(step).num_sequences)
        loss = reference_loss(parameters, spec, [batch])
        loss.backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), train.clip_grad or float("inf"))
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return Reference(losses, norms, gradients, {n: p.detach() for n, p in parameters.items()})


def check(case: Case, precision: str, measured: Measured, test: str) -> list[LayoutResult]:
    """Run a case on all its ranks and assert that each quantity is within its bound; returns what the ranks saw."""
    arguments = case.arguments(precision)
    results = run_ranks(case.num_ranks, run_layout, case.num_ranks, arguments, case.separate_documents, case.steps)
    assert all(all(result.applied) for result in results), "an update was skipped"
    wanted = reference(case.model, case.separate_documents, case.steps)
    found = differences(results, wanted, small_plan(case.num_ranks, arguments))
    for quantity, difference in found.items():
        measured.add(precision, quantity, difference, getattr(BOUNDS[precision], quantity), test)
    assert not beyond_bounds(found, precision)
    return results


def beyond_bounds(found: dict[str, Difference], precision: str) -> dict[str, Difference]:
    """The quantities that differ by more than they may."""
    bounds = BOUNDS[precision]._asdict()
    return {quantity: found[quantity] for quantity in bounds if not found[quantity].value <= bounds[quantity]}


def differences(results: list[LayoutResult], wanted: Reference, plan: RunPlan) -> dict[str, Difference]:
    """The worst difference of each quantity over steps, parameters and ranks; every parameter must be somewhere."""
    found: dict[str, list[Difference]] = {"loss": [], "norm": [], "gradient": [], "weight": []}
    for rank, result in enumerate(results):
        for quantity, values, expected in (
            ("loss", result.losses, wanted.losses),
            ("norm", result.grad_norms, wanted.grad_norms),
        ):
            assert len(values) == len(expected), f"{len(values)} steps, not {len(expected)}"
            for step, (value, truth) in enumerate(zip(values, expected, strict=True)):
                found[quantity].append(Difference(abs(value - truth) / truth, f"step {step}, rank {rank}"))
        for quantity, tensors, truths in (
            ("gradient", result.gradients, wanted.gradients),
            ("weight", result.weights, wanted.weights),
        ):
            for name, tensor in tensors.items():
                info = parameter_shapes(plan.spec)[name]
                expected_part = local_slice(truths[name], info, result.tensor_rank, plan.layout.tensor)
                found[quantity].append(Difference(relative(tensor, expected_part), f"{name}, rank {rank}"))
    for quantity, tensors_of in (
        ("gradient", [r.gradients for r in results]),
        ("weight", [r.weights for r in results]),
    ):
        names = {name for tensors in tensors_of for name in tensors}
        assert names == set(parameter_shapes(plan.spec)), f"not every {quantity} was compared"
    return {quantity: worst(list_) for quantity, list_ in found.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖₂ / ‖expected‖₂ of one rank's slice of a parameter; infinite where shapes or zeros differ."""
    if found.shape != expected.shape:
        return float("inf")
    difference, size = (found.double() - expected).norm().item(), expected.norm().item()
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


def worst(found: list[Difference]) -> Difference:
    """The largest; what is not a number counts as infinite."""
    return max(Difference(d.value if d.value == d.value else float("inf"), d.where) for d in found)
