"""Checkpoints: what one holds (manifest), writing it whole or not at all (save), coming back (load, read)."""
