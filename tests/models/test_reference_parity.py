"""With the same weights, logits and all gradients agree with timm's and torchvision's ConvNeXt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from oracles import timm, torch, torchvision
from random_models import functional, random_images, with_values
from torch_weights import randomise, renamed

from convnext_jax.tree import flatten_with_names

# Of every kind of layer, with and without one of its kind before it.
SMALL = {"depths": (2, 1, 2, 1), "dims": (16, 32, 48, 64)}


@functools.cache  # Two oracles for one model share the compilation.
def our_loss_and_gradients(name, small):
    apply, shapes = functional(name, **(SMALL if small else {}))

    def loss(params, images, weights):
        logits = apply(params, images)
        return jnp.sum(logits * weights), logits

    return jax.jit(jax.grad(loss, has_aux=True)), shapes


def of_timm(name, small):
    return timm.create_model(name, **(SMALL if small else {}))


def of_torchvision(name, small):
    if not small:
        return torchvision.models.get_model(name)
    depths, dims = SMALL["depths"], SMALL["dims"]
    stage = torchvision.models.convnext.CNBlockConfig
    stages = [stage(*each) for each in zip(dims, (*dims[1:], None), depths, strict=True)]
    # As `convnext_tiny` of torchvision has it, but for stochastic depth.
    return torchvision.models.ConvNeXt(stages)


ORACLES = {"timm": of_timm, "torchvision": of_torchvision}


@pytest.mark.parametrize(
    ("name", "kind", "size", "small"),
    [
        pytest.param("convnext_tiny", "timm", (64, 96), False, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "torchvision", (64, 96), False, marks=pytest.mark.slow),
        # Sides that fill the patches of no layer, where what is left over is cut off.
        ("convnext_tiny", "timm", (75, 101), True),
        ("convnext_tiny", "torchvision", (75, 101), True),
    ],
)
def test_logits_and_gradients(name, kind, size, small):
    oracle = ORACLES[kind](name, small)
    oracle.eval()  # No stochastic depth.
    randomise(oracle, seed=1)
    gradients_of, shapes = our_loss_and_gradients(name, small)
    params = with_values(shapes, renamed(oracle.state_dict(), kind))
    images = random_images(2, *size, 3)
    weights = random_images(2, 1000, seed=1)

    theirs = oracle(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2))
    (theirs * torch.tensor(np.asarray(weights))).sum().backward()
    gradients, ours = gradients_of(params, images, weights)

    assert parity.worst(ours, theirs.detach().numpy()) < parity.TOLERANCE
    expected = renamed({n: p.grad for n, p in oracle.named_parameters()}, kind)
    errors = {n: parity.worst(g, expected[n]) for n, g in flatten_with_names(gradients).items()}
    assert len(errors) == len(list(oracle.parameters()))
    name, error = max(errors.items(), key=lambda item: item[1])
    print(
        f"worst of logits {parity.worst(ours, theirs.detach().numpy()):.1e}, of {name} {error:.1e}"
    )
    assert error < parity.TOLERANCE, name
