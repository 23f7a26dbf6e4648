"""Types of the extension module; megagpt/kernels/optimizer_step.py says what they mean. Tensors are addresses."""

def add_gradient(total: int, gradient: int, count: int, is_first: bool, threads: int, /) -> None: ...
def adamw_step(
    master: int,
    weight: int,
    gradient: int,
    first: int,
    second: int,
    count: int,
    threads: int,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    scale: float,
    correction1: float,
    correction2: float,
    /,
) -> None: ...
