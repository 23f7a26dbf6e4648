"""Checkpoints: what one holds (manifest), writing one whole or not at all (save), and coming back from one (load, read)."""
