"""Where tensor, pipeline and data parallelism meet: the mesh of ranks, the schedule and the engine."""
