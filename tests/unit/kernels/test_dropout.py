"""Dropout: what the mask is, that a seed decides all of it, and that derived seeds do not meet."""

import pytest
import torch

from megagpt.kernels.dropout import dropout, mix


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_and_scale(probability):
    ones = torch.ones(400, 500)
    found = dropout(ones, probability, 3)
    kept = found != 0
    # 200,000 draws: standard error at most 0.0011
    assert kept.float().mean().item() == pytest.approx(1 - probability, abs=0.005)
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / (1 - probability)))
    assert found.mean().item() == pytest.approx(1.0, abs=0.02)


def test_no_pattern_along_rows_or_columns():
    kept = (dropout(torch.ones(512, 512), 0.5, 9) != 0).float() - 0.5
    assert kept.mean(0).abs().max() < 0.12  # 512 draws: standard error 0.022
    assert kept.mean(1).abs().max() < 0.12
    neighbours = (kept[:, 1:] * kept[:, :-1]).mean() * 4
    assert abs(float(neighbours)) < 0.01  # 262,000 products: standard error 0.002


def test_a_seed_decides_the_mask():
    values = torch.randn(64, 64)
    torch.manual_seed(1)
    first = dropout(values, 0.3, 42)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(dropout(values, 0.3, 42), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the default generator must not move"
    assert not torch.equal(dropout(values, 0.3, 43), first)


def test_no_seed_or_no_probability_is_the_identity():
    values = torch.randn(5, requires_grad=True)
    assert dropout(values, 0.5, None) is values
    assert dropout(values, 0.0, 7) is values


def test_gradient_goes_through_the_same_mask():
    values = torch.randn(100, dtype=torch.float64, requires_grad=True)
    found = dropout(values, 0.4, 5)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert torch.equal(gradient != 0, found != 0)
    torch.testing.assert_close(gradient[gradient != 0], torch.full_like(gradient[gradient != 0], 1 / 0.6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_mean(dtype):
    """1 / 0.9 rounded to bfloat16 is 0.16 % too small: the scale must not be rounded before it is applied."""
    values = (torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0)) + 1).to(dtype)
    found = dropout(values, 0.1, 4)
    assert found.dtype == dtype
    kept = found != 0
    ratio = found[kept].double().sum() / values[kept].double().sum()
    assert float(ratio) == pytest.approx(1 / 0.9, rel=1e-4)


def test_mix_gives_63_bits_and_is_a_pure_function():
    assert mix(1, 2) == mix(1, 2)
    for seed in (0, 1, 2**62, 2**63 - 1):
        assert 0 <= mix(seed, 5) < 2**63
        torch.Generator().manual_seed(mix(seed, 5))


@pytest.mark.parametrize("which", ["seed", "value"])
def test_mix_avalanche(which):
    """Turning one bit of an argument turns half of the result's 63 bits, give or take."""
    turned, pairs = 0, 0
    for base in range(0, 4000, 37):
        for bit in range(20):
            other = base ^ (1 << bit)
            left, right = (mix(base, 3), mix(other, 3)) if which == "seed" else (mix(3, base), mix(3, other))
            changed = (left ^ right).bit_count()
            assert 8 <= changed <= 55
            turned, pairs = turned + changed, pairs + 1
    assert turned / pairs == pytest.approx(31.5, abs=0.5)  # standard error 0.085


def test_seeds_of_a_run_do_not_meet():
    """Steps, data ranks, micro-batches, layers and sites as the code derives them: every dropout has its own seed."""
    seen = set()
    count = 0
    for step in range(20):
        for data_rank in range(4):
            of_rank = mix(mix(987654321, step), data_rank)
            for micro_batch in range(4):
                seed = mix(of_rank, micro_batch)
                seen.add(mix(seed, 1))  # the embedding
                count += 1
                for layer in range(12):
                    of_layer = mix(seed, 10_000 + layer)
                    sites = [mix(of_layer, 1), mix(of_layer, 2), *(mix(of_layer, 1_000 + rank) for rank in range(8))]
                    sites += [mix(mix(of_layer, rank + 1), site) for rank in range(8) for site in (1, 2)]
                    seen.update(sites)
                    count += len(sites)
    assert len(seen) == count
