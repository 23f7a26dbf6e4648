"""The dress rehearsal: the real model, schedule and engine of one rank of any layout, in one process without a GPU."""
