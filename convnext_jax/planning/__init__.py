"""Planning: a run's own step, compiled for machines that are not there."""
