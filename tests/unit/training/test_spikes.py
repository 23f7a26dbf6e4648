"""What is a loss spike, and what is not."""

import random

from megagpt.training.spikes import is_spike, loss_band

STEADY = [3.0 + 0.01 * (-1) ** step for step in range(100)]


def test_the_band_is_that_of_most_losses():
    band = loss_band([2.0, 2.1, 2.2, 2.3, 2.4, 30.0])  # one spike in the window moves it little
    assert band.median == 2.25
    assert band.deviation < 0.25
    assert band.limit(7) < 4


def test_a_jump_is_a_spike_and_noise_is_not():
    assert is_spike(3.2, STEADY, 7, 100)
    assert not is_spike(3.05, STEADY, 7, 100)
    assert not is_spike(1.0, STEADY, 7, 100)  # below is no spike
    noise = random.Random(7)
    losses = [noise.gauss(3, 0.05) for _ in range(2000)]
    assert not any(is_spike(losses[step], losses[step - 100 : step], 7, 100) for step in range(100, 2000))


def test_there_is_none_before_the_window_is_full():
    assert not is_spike(100.0, STEADY[:99], 7, 100)


def test_a_loss_that_falls_is_no_spike():
    falling = [10 / (1 + step / 10) for step in range(300)]
    assert not any(is_spike(falling[step], falling[step - 50 : step], 3, 50) for step in range(50, 300))
