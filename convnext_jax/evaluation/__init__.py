"""Evaluation that counts every example exactly once."""
