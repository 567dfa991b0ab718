"""Training: state, losses, the step, the loop around it and what they report."""
