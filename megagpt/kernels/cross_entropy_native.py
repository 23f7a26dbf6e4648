"""The softmax of a chunk of logits and its gradient in place on CPUs with AVX-512: native/softmax.cpp as an operator.

Each row is read twice and written once, in the processor's cache; torch's operations pass over it eight times.
"""

import torch
from torch import Tensor

try:
    from megagpt.native import _softmax
except ImportError:  # no compiler when it was installed
    _softmax = None  # type: ignore[assignment]


def native_rows_fit(logits: Tensor) -> bool:
    """Whether `native_rows` can run: bfloat16 or float32 on a CPU that has the instructions."""
    fits = logits.device.type == "cpu" and logits.dtype in (torch.bfloat16, torch.float32)
    return fits and _softmax is not None and _softmax.is_usable()


def native_rows(
    logits: Tensor,
    labels: Tensor,
    first: int,
    num_valid: int,
    weights: Tensor | None,
    known: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp [T] over the first `num_valid` of this rank's columns and the label's score [T], both float32.

    As `softmax_rows` of cross_entropy_triton.py. A row with a logit that is not finite gives NaN.
    """
    if known is None:
        log_sum_exp = torch.empty(len(logits), dtype=torch.float32)
        label_score = torch.empty_like(log_sum_exp)
    else:
        log_sum_exp, label_score = known[0].contiguous(), known[1].contiguous()
    weights = None if weights is None else weights.contiguous()
    _rows(logits, labels.contiguous(), weights, log_sum_exp, label_score, first, num_valid, known is not None)
    return log_sum_exp, label_score


@torch.library.custom_op(
    "megagpt::cpu_softmax_rows", mutates_args=("logits", "log_sum_exp", "label_score"), device_types="cpu"
)
def _rows(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    log_sum_exp: Tensor,
    label_score: Tensor,
    first: int,
    num_valid: int,
    is_known: bool,
) -> None:
    assert logits.dtype in (torch.bfloat16, torch.float32), logits.dtype
    assert logits.stride(1) == 1, logits.stride()
    assert weights is None or weights.dtype == torch.float32, weights
    assert labels.dtype == torch.int64, labels.dtype
    assert log_sum_exp.dtype == label_score.dtype == torch.float32, (log_sum_exp.dtype, label_score.dtype)
    num_rows, width = logits.shape
    assert len(labels) == len(log_sum_exp) == len(label_score) == num_rows, (labels.shape, log_sum_exp.shape)
    assert weights is None or len(weights) == num_rows, weights
    assert 0 <= num_valid <= width, (num_valid, width)
    _softmax.rows(
        logits.dtype == torch.bfloat16,
        is_known,
        torch.get_num_threads(),
        num_rows,
        logits.stride(0),
        width,
        num_valid,
        first,
        logits.data_ptr(),
        labels.data_ptr(),
        0 if weights is None else weights.data_ptr(),
        log_sum_exp.data_ptr(),
        label_score.data_ptr(),
    )


@_rows.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    log_sum_exp: Tensor,
    label_score: Tensor,
    first: int,
    num_valid: int,
    is_known: bool,
) -> None:
    return None
