"""What holds for every variant: parameter count, cost, shapes, names, initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import functional

from convnext_jax.models.flops import count_macs
from convnext_jax.models.registry import create_model, list_models
from convnext_jax.models.variants import VARIANTS
from convnext_jax.tree import flatten_with_names

# Parameters with 1000 classes, and multiply-accumulates in 10^9 at 224 pixels as published (tiny to
# xlarge: table 9 of arXiv 2201.03545; isotropic: table 2; atto to nano: timm). The isotropic models
# are published as 22, 87 and 306 million; exactly they have:
PUBLISHED = {
    "convnext_atto": (3_695_520, 0.55),
    "convnext_femto": (5_217_784, 0.79),
    "convnext_pico": (9_045_672, 1.37),
    "convnext_nano": (15_593_560, 2.46),
    "convnext_tiny": (28_589_128, 4.5),
    "convnext_small": (50_223_688, 8.7),
    "convnext_base": (88_591_464, 15.4),
    "convnext_large": (197_767_336, 34.4),
    "convnext_xlarge": (350_196_968, 60.9),
    "convnext_isotropic_small": (22_308_712, 4.3),
    "convnext_isotropic_base": (87_083_752, 16.9),
    "convnext_isotropic_large": (305_942_504, 59.7),
}
ISOTROPIC_MILLIONS = {
    "convnext_isotropic_small": 22,
    "convnext_isotropic_base": 87,
    "convnext_isotropic_large": 306,
}


def images(size, n=1):
    return jax.ShapeDtypeStruct((n, size, size, 3), jnp.float32)


def test_table_is_complete():
    assert sorted(PUBLISHED) == list_models()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs(name):
    apply, shapes = functional(name)
    parameters, giga_macs = PUBLISHED[name]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == parameters
    if name in ISOTROPIC_MILLIONS:
        assert round(count / 1e6) == ISOTROPIC_MILLIONS[name]
    # 2 %: the published figures have two or three digits.
    assert count_macs(apply, shapes, images(224)) / 1e9 == pytest.approx(giga_macs, rel=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_and_dtypes(name):
    variant = VARIANTS[name]
    apply, shapes = functional(name, num_classes=7, dtype="bfloat16", drop_path=0.1)
    key = jax.random.key(0)
    logits = jax.eval_shape(apply, shapes, images(70, n=2), key)
    maps = jax.eval_shape(
        lambda p, x, k: apply(p, x, k, method="features"), shapes, images(70, n=2), key
    )
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    sides = (17, 8, 4, 2) if variant.architecture == "convnext" else (4,)  # 70 // 4 // 2 ...
    assert [(m.shape, m.dtype) for m in maps] == [
        ((2, side, side, dim), jnp.bfloat16) for side, dim in zip(sides, variant.dims, strict=True)
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_variant_reaches_the_model(name):
    variant = VARIANTS[name]
    names = flatten_with_names(functional(name)[1])
    gammas = [n for n in names if n.endswith("/gamma")]
    with_layer_scale = name not in ("convnext_isotropic_small", "convnext_isotropic_base")
    assert len(gammas) == (sum(variant.depths) if with_layer_scale else 0)
    assert 0.5 < variant.crop_fraction <= 1 and variant.input_size == 224


def test_parameter_names_are_the_references():
    names = list(flatten_with_names(functional("convnext_atto")[1]))
    block = {"dwconv/kernel", "norm/scale", "pwconv1/kernel", "pwconv2/bias", "gamma"}
    assert {f"stages/2/5/{name}" for name in block} <= set(names)
    assert {
        "downsample_layers/0/0/kernel",
        "downsample_layers/0/1/scale",
        "downsample_layers/3/0/scale",
        "downsample_layers/3/1/kernel",
        "norm/bias",
        "head/kernel",
    } <= set(names)
    headless = flatten_with_names(functional("convnext_atto", num_classes=0)[1])
    assert set(names) - set(headless) == {"head/kernel", "head/bias"}
    isotropic = flatten_with_names(functional("convnext_isotropic_large")[1])
    assert {n.split("/")[0] for n in isotropic} == {"stem", "blocks", "norm", "head"}
    assert "blocks/35/gamma" in isotropic and isotropic["stem/kernel"].shape == (16, 16, 3, 1024)


def test_initial_values():
    leaves = flatten_with_names(initial("convnext_atto", head_init_scale=0.5))
    for name, leaf in leaves.items():
        kind = name.rpartition("/")[2]
        if kind == "kernel":
            expected = 0.01 if name.startswith("head") else 0.02
            # A sample's standard deviation has the relative deviation 1 / sqrt(2 n); five of them.
            tolerance = 5 / (2 * leaf.size) ** 0.5
            assert leaf.std() == pytest.approx(expected, rel=tolerance), name
            assert abs(float(leaf.mean())) < 5 * expected / leaf.size**0.5, name
            # Normal, not cut at two standard deviations, and no outlier: P(|z| > 7) is 3e-12.
            if leaf.size > 10_000:
                assert 3 * expected < float(abs(leaf).max()) < 7 * expected, name
        else:
            value = {"bias": 0.0, "scale": 1.0, "gamma": 1e-6}[kind]
            assert np.all(leaf == np.float32(value)), name


def initial(name, **overrides):
    state = nnx.state(create_model(name, **overrides), nnx.Param)
    return jax.tree.map(np.asarray, nnx.to_pure_dict(state))


def test_initial_values_depend_on_rngs_alone():
    first, again, other = (
        flatten_with_names(initial("convnext_atto", rngs=rngs))
        for rngs in (None, nnx.Rngs(0), nnx.Rngs(1))
    )
    for name, leaf in first.items():
        assert np.all(leaf == again[name]), name
        if name.endswith("kernel"):
            assert not np.any(leaf == other[name]), name
    # Kernels of one shape differ from block to block.
    assert np.all(first["stages/0/0/dwconv/kernel"] != first["stages/0/1/dwconv/kernel"])


@pytest.mark.parametrize("none", [0, 0.0, None])
def test_no_layer_scale(none):
    _, shapes = functional("convnext_atto", layer_scale_init=none)
    assert not any("gamma" in name for name in flatten_with_names(shapes))
