"""Training: state, the step, the loop around it and what it reports."""
