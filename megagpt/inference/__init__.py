"""Text from a trained model in one process. Knows checkpoints and tokenizers, nothing of training."""
