"""Datasets addressed by index, and the Grain pipeline."""
