"""Semantic segmentation: UPerNet, its recipe, sliding windows, and mean IoU."""
