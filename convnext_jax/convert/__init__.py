"""Weights of other ConvNeXt implementations in and out: `loading.load` and `write.export`."""
