"""Starting a run on many machines: command lines, SLURM jobs, what runs on each node, and the check of nodes."""
