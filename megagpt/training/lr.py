"""The learning rate as a pure function of the tokens trained on. Knows nothing of steps, ranks or the optimizer.

All schedules warm up linearly from zero to `train.lr` over `train.warmup_tokens`. With w = warmup_tokens,
d = decay_tokens, m = lr * min_lr_ratio and t tokens after warm-up:

    cosine     lr - (lr - m) * (1 - cos(pi * (t - w) / (d - w))) / 2, then m    Brown et al. 2020, appendix B
    linear     lr - (lr - m) * (t - w) / (d - w), then m
    constant   lr
    wsd        lr until d * (1 - wsd_decay_share), then linear to m at d, then m    Hu et al. 2024 (MiniCPM)
    noam       max(m, lr * sqrt(w / t))    Vaswani et al. 2017 §5.3, normalised so that its peak at t = w is lr
"""

import math

from megagpt.config import TrainSection


def learning_rate(train: TrainSection, tokens: int) -> float:
    """The rate of the update that brings the run to `tokens` tokens, so that the first update has a rate over zero."""
    assert tokens > 0, tokens
    if tokens < train.warmup_tokens:
        return train.lr * tokens / train.warmup_tokens
    floor = train.lr * train.min_lr_ratio
    if train.lr_schedule == "constant":
        return train.lr
    if train.lr_schedule == "noam":
        return max(floor, train.lr * math.sqrt(train.warmup_tokens / tokens))
    start = decay_start_tokens(train)
    if tokens >= train.decay_tokens:
        return floor
    done = max(0.0, (tokens - start) / (train.decay_tokens - start))
    if train.lr_schedule == "cosine":
        return train.lr - (train.lr - floor) * (1 - math.cos(math.pi * done)) / 2
    return train.lr - (train.lr - floor) * done


def decay_start_tokens(train: TrainSection) -> float:
    """Tokens at which the decay begins: the end of warm-up, or for wsd the start of its last share."""
    if train.lr_schedule == "wsd":
        return train.decay_tokens * (1 - train.wsd_decay_share)
    return train.warmup_tokens
