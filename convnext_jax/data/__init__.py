"""Datasets addressed by index, image transforms with PIL semantics, and the Grain pipeline."""
