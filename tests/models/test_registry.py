"""Names, overrides, and what is refused."""

import jax.numpy as jnp
import pytest
from flax import nnx
from random_models import functional

import convnext_jax
from convnext_jax.errors import InputError
from convnext_jax.models.registry import create_model, get_variant, list_models

SMALL = {"depths": (1, 1), "dims": (4, 8)}


def test_list_models():
    assert list_models() == sorted(list_models())
    assert list_models("*_isotropic_*") == [
        "convnext_isotropic_base",
        "convnext_isotropic_large",
        "convnext_isotropic_small",
    ]
    assert list_models("resnet*") == []
    assert convnext_jax.list_models is list_models and convnext_jax.create_model is create_model


def test_overrides_reach_the_model():
    overrides = {"kernel_size": 3, "layer_scale_init": 0.5, "drop_path": 0.25, "norm_eps": 1e-3}
    model = nnx.eval_shape(
        lambda: create_model(
            "convnext_tiny", 9, dtype=jnp.bfloat16, remat=True, **SMALL, **overrides
        )
    )
    assert (model.depths, model.dims, model.num_classes) == ((1, 1), (4, 8), 9)
    assert model.dtype == jnp.bfloat16 and model.remat
    assert model.stages[1][0].dwconv.kernel.shape == (3, 3, 1, 8)
    assert [stage[0].drop_path for stage in model.stages] == [0.0, 0.25]
    norms = [
        model.norm,
        model.stages[0][0].norm,
        *(model.downsample_layers[i][1 - i] for i in (0, 1)),
    ]
    assert [norm.epsilon for norm in norms] == [1e-3] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "convnext_tinny"}, r"`name` \(=convnext_tinny\) must .*convnext_tiny"),
        ({"name": "xyz"}, r"`name` \(=xyz\) must be a known model"),
        ({"drop_pth": 0.1}, r"`drop_pth` \(=0.1\) must .*depths, .*did you mean drop_path"),
        ({"rng": 0}, r"`rng` \(=0\) must be one of the overrides"),
        ({"drop_path": -0.1}, r"`drop_path` \(=-0.1\) must be a probability .*\[0, 1\)"),
        ({"drop_path": 1.0}, r"`drop_path` \(=1.0\) must"),
        ({"drop_path": float("nan")}, r"`drop_path` \(=nan\) must"),
        ({"kernel_size": 4}, r"`kernel_size` \(=4\) must be odd"),
        ({"dims": (4, 8)}, r"`dims` \(=\(4, 8\)\) must have as many entries as `depths`"),
        ({"depths": (0, 1, 1, 1)}, r"`depths` \(=\(0, 1, 1, 1\)\) must"),
        ({"dims": (4, 8, 0, 8)}, r"`dims` \(=\(4, 8, 0, 8\)\) must be positive"),
        ({"dtype": "float23"}, r"`dtype` \(=float23\) must be one of float32, bfloat16"),
        ({"dtype": "float64"}, r"`dtype` \(=float64\) must be one of float32, bfloat16"),
        ({"num_classes": -1}, r"`num_classes` \(=-1\) must be 0"),
        ({"layer_scale_init": -1e-6}, r"`layer_scale_init` \(=-1e-06\) must be positive"),
        ({"norm_eps": 0}, r"`norm_eps` \(=0\) must be positive"),
        (
            {"name": "convnext_isotropic_small", "depths": (2, 2), "dims": (8, 8)},
            r"`depths` \(=\(2, 2\)\) must have length 1",
        ),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model(**{"name": "convnext_atto", **arguments})


def test_unknown_variant():
    with pytest.raises(InputError, match="convnext_isotropic_base"):
        get_variant("convnext_isotropic_bas")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            jnp.ones((32, 32, 3)),
            r"`images` \(=shape \(32, 32, 3\)\) must have shape \[N, H, W, 3\]",
        ),
        (jnp.ones((1, 3, 32, 32)), r"must have shape \[N, H, W, 3\]"),
        (jnp.ones((1, 31, 64, 3)), r"must be at least 32 pixels"),
        (jnp.ones((1, 32, 32, 3), jnp.uint8), r"`images` \(=dtype uint8\) must be floating point"),
    ],
)
def test_refuses_images(images, message):
    apply, shapes = functional("convnext_atto")
    with pytest.raises(InputError, match=message):
        apply(shapes, images)
