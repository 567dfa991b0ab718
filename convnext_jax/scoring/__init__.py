"""Weights on test sets: one dataset, a suite of them, and what was measured before."""
