"""Training: the loop, learning rate, metrics and evaluation."""
