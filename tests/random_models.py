"""Models as pure functions of named arrays, made without running or compiling an initialiser."""

import math

import jax
import numpy as np
from flax import nnx

from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelSpec
from convnext_jax.tree import flatten_with_names, map_with_names


def functional(name: str, **overrides):
    """Returns (apply, shapes): `apply(params, images, key=None)`, and `params` without values."""
    num_classes = overrides.pop("num_classes", get_variant(name).num_classes)
    graphdef, state = nnx.split(ModelSpec(name, num_classes, overrides).abstract())

    def apply(params, images, key=None, method="__call__"):
        return getattr(nnx.merge(graphdef, nnx.State(params)), method)(images, key)

    return apply, nnx.to_pure_dict(state)


def stateless(apply):
    """The same of batch statistics too, which it has none of."""
    return lambda params, batch_stats, images, key=None: (
        apply(params, images, key=key),
        batch_stats,
    )


def random_params(shapes, seed: int = 0):
    """Fills a tree of shapes with values at which every parameter matters: gamma is of order 1."""
    rng = np.random.default_rng(seed)

    def fill(name, leaf):
        noise = rng.standard_normal(leaf.shape, dtype=np.float32)
        kind = name.rpartition("/")[2]
        if kind == "kernel":
            return noise / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))
        values = {"gamma": 0.6 + 0.2 * noise, "scale": 1 + 0.3 * noise, "bias": 0.3 * noise}
        return {**values, "beta": 0.3 * noise}[kind]

    return map_with_names(fill, shapes)


def with_values(shapes, values):
    """Fills a tree of shapes from a dict of names to arrays, every name used, every leaf filled."""
    assert {n: v.shape for n, v in flatten_with_names(shapes).items()} == {
        n: v.shape for n, v in values.items()
    }
    return map_with_names(lambda name, _: values[name], shapes)


def random_images(*shape: int, seed: int = 0) -> jax.Array:
    """Draws normal pixels, as normalised images have them."""
    return jax.numpy.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
