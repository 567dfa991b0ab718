"""One small file in Facebook's format, and what tests do to it."""

import numpy as np
from oracles import torch

from convnext_jax.convert.loading import load

MODEL = {"model": "convnext_tiny", "overrides": {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}}
CLASSES = 5


def state(seed=0):
    """A state dict of random float32 tensors."""
    generator = torch.Generator().manual_seed(seed)
    dims = MODEL["overrides"]["dims"]
    shapes = {}
    for stage, dim in enumerate(dims):
        before = dims[stage - 1] if stage else 3
        conv, norm = ("0", "1") if stage == 0 else ("1", "0")
        side = 4 if stage == 0 else 2
        shapes |= {
            f"downsample_layers.{stage}.{conv}.weight": (dim, before, side, side),
            f"downsample_layers.{stage}.{conv}.bias": (dim,),
            f"downsample_layers.{stage}.{norm}.weight": (before if stage else dim,),
            f"downsample_layers.{stage}.{norm}.bias": (before if stage else dim,),
            f"stages.{stage}.0.dwconv.weight": (dim, 1, 7, 7),
            f"stages.{stage}.0.dwconv.bias": (dim,),
            f"stages.{stage}.0.norm.weight": (dim,),
            f"stages.{stage}.0.norm.bias": (dim,),
            f"stages.{stage}.0.pwconv1.weight": (4 * dim, dim),
            f"stages.{stage}.0.pwconv1.bias": (4 * dim,),
            f"stages.{stage}.0.pwconv2.weight": (dim, 4 * dim),
            f"stages.{stage}.0.pwconv2.bias": (dim,),
            f"stages.{stage}.0.gamma": (dim,),
        }
    shapes |= {"norm.weight": (dims[-1],), "norm.bias": (dims[-1],)}
    shapes |= {"head.weight": (CLASSES, dims[-1]), "head.bias": (CLASSES,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved(path, content):
    """Saves with torch and returns the path as `load` takes it."""
    torch.save(content, path)
    return str(path)


def load_small(location, **arguments):
    """Loads a file of the small model."""
    return load(str(location), **{**MODEL, **arguments})


def gamma(converted):
    """A parameter to recognise weights by."""
    return np.asarray(converted.params["stages"][0][0]["gamma"])
