"""megagpt: pretraining of GPT-3-family language models, from one laptop to a GPU cluster."""

__version__ = "0.1.0"
