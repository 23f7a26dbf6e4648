"""Pretraining: building a run from its plan, the loop, learning rate, evaluation and metrics."""
