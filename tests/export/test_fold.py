"""Folded parameters give the logits of the others."""

import functools

import jax
import numpy as np
import pytest
from export.families import SPECS, side_of, variables
from random_models import random_images

from convnext_jax.constants import IMAGENET_MEAN, IMAGENET_STD
from convnext_jax.export.fold import fold
from convnext_jax.models.variants import Preprocessing
from convnext_jax.tree import flatten_with_names

FEEDING = Preprocessing()


@functools.cache
def function(name):
    spec = SPECS[name]
    apply = spec.function_with_batch_stats()

    def logits(params, stats, images):
        outputs, _ = apply(params, stats, images)
        return getattr(outputs, "decode", outputs)

    return jax.jit(logits)


def images_of(name, count=3):
    spec = SPECS[name]
    side = side_of(spec)
    return random_images(count, side, side, spec.overrides.get("in_channels", 3))


@pytest.mark.parametrize("name", SPECS)
def test_logits_stay(name):
    params, stats = variables(SPECS[name])
    folded, pixels = fold(params)
    assert not pixels
    images = images_of(name)
    expected = function(name)(params, stats, images)
    found = function(name)(folded, stats, images)
    # Products are rounded at other places, tens of times on the way: 4e-7 is seen.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))


@pytest.mark.parametrize("name", SPECS)
def test_what_was_folded_is_gone(name):
    before = flatten_with_names(variables(SPECS[name])[0])
    after = flatten_with_names(fold(variables(SPECS[name])[0])[0])
    assert before.keys() == after.keys()
    for parameter, array in after.items():
        owner, _, kind = parameter.rpartition("/")
        in_block = "/stages/" in f"/{parameter}" or "blocks/" in parameter
        neutral = {"gamma": 1, "scale": 1, "beta": 0, "bias": 0}.get(kind)
        if in_block and (kind in ("scale", "beta") or owner.endswith("/norm")):
            assert np.all(array == neutral), parameter
        elif in_block and kind == "gamma" and not owner.endswith("grn"):
            assert np.all(array == 1), parameter
        elif owner.endswith("grn") or parameter.startswith("downsample_layers/0/1/"):
            # What depends on the data, and what the residual stream begins with.
            np.testing.assert_array_equal(array, before[parameter])
        assert array.dtype == np.float32


@pytest.mark.parametrize("name", SPECS)
def test_images_may_be_pixels_where_the_stem_has_no_padding(name):
    spec = SPECS[name]
    params, stats = variables(spec)
    folded, pixels = fold(params, FEEDING)
    assert pixels == (
        name not in {"overlapping stem", "overlapping stem, activation", "four channels"}
    )
    if not pixels:
        for one, other in zip(
            jax.tree.leaves(folded), jax.tree.leaves(fold(params)[0]), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        return
    raw = np.random.default_rng(0).uniform(0, 255, images_of(name).shape).astype(np.float32)
    normalised = (raw / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    expected = function(name)(params, stats, normalised.astype(np.float32))
    found = function(name)(folded, stats, raw)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))
