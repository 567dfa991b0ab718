"""Models as data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import random_params

from convnext_jax import create_model, tree
from convnext_jax.models.spec import ModelDescription, ModelSpec, rounded_kernels
from convnext_jax.models.variants import VARIANTS, Preprocessing

SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}


def test_a_spec_is_the_model_that_create_model_builds():
    spec = ModelSpec("convnext_atto", 5, SMALL)
    model = create_model("convnext_atto", 5, nnx.Rngs(1), **SMALL)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), spec.abstract_params())
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    np.testing.assert_array_equal(spec.function()(params, images), model(images))


def test_other_channels():
    spec = ModelSpec("convnext_atto", 5, SMALL | {"in_channels": 4})
    assert tree.flatten_with_names(spec.abstract_params())[
        "downsample_layers/0/0/kernel"
    ].shape == (*(4, 4, 4, 8),)
    logits = jax.eval_shape(spec.create(), jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32))
    assert logits.shape == (1, 5)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec("convnext_atto", 5, SMALL | {"dtype": "bfloat16"}),
        ModelSpec("convnextv2_atto", 5, SMALL | {"dtype": "float16"}),
        ModelSpec("convnext_isotropic_small", 5, {"depths": (1,), "dims": (32,)}),
        ModelSpec("convnext_zepto_rms_ols", 5, SMALL | {"dtype": "bfloat16"}),
    ],
    ids=lambda spec: spec.name,
)
def test_kernels_rounded_beforehand_are_the_same_model(spec):
    params = random_params(spec.abstract_params())
    rounded = rounded_kernels(params, spec.kernel_dtypes())
    low = jnp.dtype(spec.overrides.get("dtype", "float32"))
    for name, leaf in tree.flatten_with_names(rounded).items():
        is_rounded = name.endswith("kernel") and not name.startswith("head")
        assert leaf.dtype == (low if is_rounded else jnp.float32), name
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), low)
    function = jax.jit(spec.function())
    expected = np.asarray(function(params, images))
    assert np.isfinite(expected).all() and expected.std() > 1e-3
    np.testing.assert_array_equal(function(rounded, images), expected)


def test_descriptions_survive_json():
    for preprocessing in (Preprocessing(input_size=48), VARIANTS["convnext_nano"]):
        spec = ModelSpec("convnext_nano", 2, {"drop_path": 0.1})
        description = ModelDescription(spec, preprocessing, ("cat", "dog"))
        again = ModelDescription.from_json(json.loads(json.dumps(description.to_json())))
        assert (again.spec, again.class_names) == (spec, ("cat", "dog"))
        for field in ("input_size", "crop_fraction", "crop_mode", "interpolation", "mean", "std"):
            assert getattr(again.preprocessing, field) == getattr(preprocessing, field)


@pytest.mark.parametrize(
    "name",
    [
        *("convnext_atto", "convnextv2_atto", "convnext_isotropic_small", "convnext_zepto_rms_ols"),
        *("roadmap_resnet50_original", "upernet_convnext_atto", "cascade_mask_rcnn_convnext_atto"),
    ],
)
def test_shapes_are_those_of_a_model_that_is_traced(name):
    traced = nnx.split(nnx.eval_shape(lambda: create_model(name, 7)))
    found = nnx.split(ModelSpec(name, 7).abstract())
    assert found[0] == traced[0]
    shapes = [
        {n: (x.shape, x.dtype) for n, x in tree.flatten_with_names(nnx.to_pure_dict(state)).items()}
        for _, state in (traced, found)
    ]
    assert shapes[0] == shapes[1]
