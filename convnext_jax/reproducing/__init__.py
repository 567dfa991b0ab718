"""The published numbers of ConvNeXt, and how results stand beside them."""
