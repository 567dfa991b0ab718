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


@functools.cache  # Two oracles for one model share the compilation.
def our_loss_and_gradients(name):
    apply, shapes = functional(name)

    def loss(params, images, weights):
        logits = apply(params, images)
        return jnp.sum(logits * weights), logits

    return jax.jit(jax.grad(loss, has_aux=True)), shapes


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("convnext_tiny", "timm", (64, 96)),
        ("convnext_tiny", "torchvision", (64, 96)),
        # Sides that fill the patches of no layer, where what is left over is cut off.
        ("convnext_atto", "timm", (75, 101)),
    ],
)
def test_logits_and_gradients(name, kind, size):
    oracle = timm.create_model(name) if kind == "timm" else torchvision.models.get_model(name)
    oracle.eval()  # No stochastic depth.
    randomise(oracle, seed=1)
    gradients_of, shapes = our_loss_and_gradients(name)
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
