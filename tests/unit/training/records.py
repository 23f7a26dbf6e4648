"""Records for tests."""

from megagpt.training.metrics import EvaluationRecord, StepRecord


def step_record(step: int, **values) -> StepRecord:
    defaults = {
        "step": step,
        "tokens": step * 100,
        "loss": 5.0 - step / 10,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "loss_scale": 1.0,
        "applied": True,
        "seconds_per_step": 0.25,
        "tokens_per_second": 400.0,
        "model_tflops": 0.05,
        "mfu": None,
    }
    return StepRecord(**(defaults | values))


def evaluation_record(step: int, loss: float = 4.0, entropy: float = 6.0) -> EvaluationRecord:
    return EvaluationRecord(step, loss, 54.6, entropy, 1000)
