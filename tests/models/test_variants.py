"""Every architecture has timm's parameters, and one of each kind its logits and gradients."""

import jax
import numpy as np
import parity
import pytest
from flax import nnx
from oracles import timm, torch
from random_models import functional, random_images, with_values
from torch_weights import randomise, renamed

from convnext_jax.errors import InputError
from convnext_jax.models import layers, stems
from convnext_jax.models.registry import create_model
from convnext_jax.models.variants import CLASSIFIERS
from convnext_jax.tree import flatten_with_names

nn = torch.nn

# timm has no isotropic models; those are tested in test_isotropic.py.
IN_TIMM = [name for name in CLASSIFIERS if CLASSIFIERS[name].architecture == "convnext"]


def on_meta(name, **overrides):
    with torch.device("meta"):
        return timm.create_model(name, **overrides)


@pytest.mark.parametrize("name", IN_TIMM)
def test_names_shapes_and_epsilon(name):
    oracle = on_meta(name)
    expected = {n: a.shape for n, a in renamed(dict(oracle.named_parameters()), "timm").items()}
    assert not list(oracle.buffers())
    model = nnx.eval_shape(lambda: create_model(name))
    ours = flatten_with_names(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert {n: leaf.shape for n, leaf in ours.items()} == expected
    assert sum(leaf.size for leaf in ours.values()) == sum(p.numel() for p in oracle.parameters())
    epsilons = {m.epsilon for _, m in nnx.iter_modules(model) if isinstance(m, layers.Norm)}
    grn = timm.layers.grn.GlobalResponseNorm
    theirs = {m.eps for m in oracle.modules() if hasattr(m, "eps") and not isinstance(m, grn)}
    assert epsilons == theirs and len(epsilons) == 1


# One of each kind, with fewer and narrower blocks where that leaves the kind as it is.
NARROW = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)}
# Gradients take long to compile; those of the other kinds go through no function of this project
# that these do not go through.
WITH_GRADIENTS = {
    "convnextv2_atto": {"depths": (1, 1, 1, 1)},
    "convnext_zepto_rms_ols": NARROW,
}
LOGITS_ALONE = {
    "convnext_atto_ols": {"depths": (1, 1, 2, 1)},
    "convnext_nano_ols": NARROW,
    "convnext_zepto_rms": NARROW,
    "convnext_tiny_hnf": NARROW,
    "convnext_large_mlp": {**NARROW, "head_hidden_size": 48},
    "convnext_xxlarge": NARROW,
    "test_convnext": {"depths": (1, 1, 1, 1)},
    "test_convnext2": {},
    "test_convnext3": {},
}


@pytest.mark.parametrize(
    ("name", "gradients"),
    [*((n, True) for n in WITH_GRADIENTS), *((n, False) for n in LOGITS_ALONE)],
)
def test_logits_and_gradients(name, gradients):
    overrides = {"num_classes": 10, **(WITH_GRADIENTS if gradients else LOGITS_ALONE)[name]}
    oracle = timm.create_model(name, **overrides)
    errors = parity.errors_of(oracle, "timm", name, gradients, **overrides)
    leaf, error = max(errors.items(), key=lambda item: item[1])
    print(f"{name}: worst of logits {errors['logits']:.1e}, of {leaf} {error:.1e}")
    assert error < parity.TOLERANCE, leaf


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_large_mlp", "convnext_tiny_hnf"])
def test_features_and_embedding(name):
    overrides = {**NARROW, "num_classes": 0}
    if name == "convnext_large_mlp":
        overrides["head_hidden_size"] = 48
    oracle = timm.create_model(name, **overrides).eval()
    randomise(oracle, seed=3)
    apply, shapes = functional(name, **overrides)
    params = with_values(shapes, renamed(oracle.state_dict(), "timm"))
    images = random_images(2, 75, 101, 3)
    with torch.no_grad():
        pixels = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
        embedding = oracle(pixels)
        maps = oracle.forward_intermediates(pixels, intermediates_only=True)
    both = jax.jit(lambda p, x: (apply(p, x), apply(p, x, method="features")))
    ours, our_maps = both(params, images)
    assert parity.worst(ours, embedding.numpy()) < parity.TOLERANCE
    assert len(our_maps) == len(maps) == 4
    for our_map, their_map in zip(our_maps, maps, strict=True):
        assert parity.worst(our_map, their_map.permute(0, 2, 3, 1).numpy()) < parity.TOLERANCE


def test_stem_widths_are_rounded_as_in_timm():
    theirs = [timm.layers.make_divisible(width) for width in range(1, 300)]
    assert [stems.round_to_eight(width) for width in range(1, 300)] == theirs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem": "pach"}, r"`stem` \(=pach\) must be one of patch, .*did you mean patch"),
        ({"activation": "relu"}, r"`activation` \(=relu\) must be one of gelu, gelu_tanh, silu"),
        ({"norm": "rms_norm"}, r"`norm` \(=rms_norm\) must be one of layer_norm, simple_norm"),
        ({"head_hidden_size": 0}, r"`head_hidden_size` \(=0\) must be positive"),
        ({"kernel_size": (7, 5)}, r"`kernel_size` \(=\(7, 5\)\) must .* as many entries"),
        ({"kernel_size": (7, 5, 4, 3)}, r"`kernel_size` \(=\(7, 5, 4, 3\)\) must be odd"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model("convnext_atto", **arguments)
