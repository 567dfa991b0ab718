"""What holds for every variant: parameter count, cost, shapes, names, initial values."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import functional

from convnext_jax.models.flops import count_macs
from convnext_jax.models.registry import create_model
from convnext_jax.models.variants import CLASSIFIERS, VARIANTS
from convnext_jax.tree import flatten_with_names

# Parameters with 1000 classes, and multiply-accumulates in 10^9 at 224 pixels as published (tiny to
# xlarge: table 9 of arXiv 2201.03545; isotropic: table 2; atto to nano: timm; V2: its repository's
# table, in millions and one to three digits). timm's other variants are in test_variants.py.
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
    "convnextv2_atto": (3_708_400, 0.55),
    "convnextv2_femto": (5_233_240, 0.78),
    "convnextv2_pico": (9_066_280, 1.37),
    "convnextv2_nano": (15_623_800, 2.45),
    "convnextv2_tiny": (28_635_496, 4.47),
    "convnextv2_base": (88_717_800, 15.4),
    "convnextv2_large": (197_956_840, 34.4),
    "convnextv2_huge": (660_289_640, 115),
}
MILLIONS = {
    "convnext_isotropic_small": 22,
    "convnext_isotropic_base": 87,
    "convnext_isotropic_large": 306,
    "convnextv2_atto": 3.7,
    "convnextv2_femto": 5.2,
    "convnextv2_pico": 9.1,
    "convnextv2_nano": 15.6,
    "convnextv2_tiny": 28.6,
    "convnextv2_base": 89,
    "convnextv2_large": 198,
    "convnextv2_huge": 660,
}


@functools.cache  # Tests share the tracing of a model; none writes to the shapes.
def published(name):
    return functional(name)


def images(size, n=1):
    return jax.ShapeDtypeStruct((n, size, size, 3), jnp.float32)


def test_table_is_complete():
    assert len(CLASSIFIERS) == 32
    assert {name for name in CLASSIFIERS if name not in PUBLISHED} == {
        *(f"convnext_{size}_ols" for size in ("atto", "femto", "pico", "nano")),
        *("convnext_tiny_hnf", "convnext_large_mlp", "convnext_xxlarge"),
        *("convnext_zepto_rms", "convnext_zepto_rms_ols"),
        *("test_convnext", "test_convnext2", "test_convnext3"),
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs(name):
    apply, shapes = published(name)
    parameters, giga_macs = PUBLISHED[name]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == parameters
    if name in MILLIONS:
        assert (
            round(count / 1e6, 1 if MILLIONS[name] < 50 and "iso" not in name else 0)
            == (MILLIONS[name])
        )
    # 2 %: the published figures have two or three digits.
    assert count_macs(apply, shapes, images(224)) / 1e9 == pytest.approx(giga_macs, rel=0.02)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shapes_and_dtypes(name):
    variant = VARIANTS[name]
    # One block a stage, which traces faster: blocks do not change shapes.
    depths = (1,) * len(variant.depths)
    overrides = {"num_classes": 7, "dtype": "bfloat16", "drop_path": 0.1, "depths": depths}
    apply, shapes = functional(name, **overrides)
    key = jax.random.key(0)
    logits = jax.eval_shape(apply, shapes, images(70, n=2), key)
    maps = jax.eval_shape(
        lambda p, x, k: apply(p, x, k, method="features"), shapes, images(70, n=2), key
    )
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    sides = (4,)  # 70 // 16
    if variant.architecture == "convnext":
        # 70 // 4 // 2 ...; an overlapping stem rounds 70 / 4 up.
        sides = (17, 8, 4, 2) if variant.stem == "patch" else (18, 9, 4, 2)
    assert [(m.shape, m.dtype) for m in maps] == [
        ((2, side, side, dim), jnp.bfloat16) for side, dim in zip(sides, variant.dims, strict=True)
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_variant_reaches_the_model(name):
    variant = VARIANTS[name]
    names = flatten_with_names(published(name)[1])
    blocks = sum(variant.depths)
    with_layer_scale = "v2" not in name and not name.endswith(("isotropic_small", "isotropic_base"))
    gammas = [n for n in names if re.fullmatch(r"(stages/\d+|blocks)/\d+/gamma", n)]
    assert len(gammas) == (blocks if with_layer_scale else 0)
    grn = [n for n in names if re.fullmatch(r"stages/\d+/\d+/grn/(gamma|beta)", n)]
    assert len(grn) == (2 * blocks if "v2" in name else 0)
    assert 0.5 < variant.crop_fraction <= 1


def test_parameter_names_are_the_references():
    names = list(flatten_with_names(published("convnext_atto")[1]))
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
    stem = flatten_with_names(published("convnext_zepto_rms_ols")[1])
    assert {n for n in stem if n.startswith("downsample_layers/0")} == {
        *("downsample_layers/0/0/kernel", "downsample_layers/0/0/bias"),
        *("downsample_layers/0/1/kernel", "downsample_layers/0/1/bias"),
        "downsample_layers/0/2/scale",
    }
    norm_first = flatten_with_names(published("convnext_tiny_hnf")[1])
    assert set(norm_first) - set(names) >= {"norm_pre/scale", "norm_pre/bias"}
    assert "norm/scale" not in norm_first
    hidden = flatten_with_names(published("convnext_large_mlp")[1])
    assert hidden["pre_logits/kernel"].shape == (1536, 1536)
    isotropic = flatten_with_names(published("convnext_isotropic_large")[1])
    assert {n.split("/")[0] for n in isotropic} == {"stem", "blocks", "norm", "head"}
    assert "blocks/35/gamma" in isotropic and isotropic["stem/kernel"].shape == (16, 16, 3, 1024)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("convnext_atto", {}),
        # All other kinds of parameters in the smallest model that has them.
        (
            "convnextv2_atto",
            {"depths": (1,), "dims": (32,), "norm": "simple_norm", "stem": "overlap_act"},
        ),
    ],
)
def test_initial_values(name, overrides):
    leaves = flatten_with_names(initial(name, head_init_scale=0.5, **overrides))
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
            value = {"bias": 0.0, "scale": 1.0, "gamma": 1e-6, "beta": 0.0}[kind]
            value = 0.0 if name.endswith("grn/gamma") else value
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
