"""The ConvNeXt family as Flax NNX modules, and the registry that creates them by name."""
