"""Comparing a model with one in PyTorch that has the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import torch
from random_models import functional, random_images, with_values
from torch_weights import randomise, renamed

from convnext_jax.tree import flatten_with_names

# Relative to the largest absolute value of the tensor compared: single elements can cancel to
# nearly 0, so their own size is no measure. Both sides compute in float32 and add up in another
# order, which was seen to give 2e-6 in shallow models, 3e-6 in deep ones.
TOLERANCE = 3e-5


def worst(ours, theirs) -> float:
    assert ours.shape == theirs.shape and np.all(np.isfinite(ours)) and np.any(theirs)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def errors_of(oracle, kind, name, gradients, **overrides) -> dict[str, float]:
    """Relative errors of the logits, and with `gradients` of every parameter's gradient."""
    randomise(oracle.eval(), seed=1)
    apply, shapes = functional(name, **overrides)
    params = with_values(shapes, renamed(oracle.state_dict(), kind))
    images = random_images(2, 75, 101, 3)  # Sides that fill the patches of no layer.
    theirs = oracle(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2))
    weights = random_images(*theirs.shape, seed=1)
    if not gradients:
        return {"logits": worst(jax.jit(apply)(params, images), theirs.detach().numpy())}
    (theirs * torch.tensor(np.asarray(weights))).sum().backward()

    def loss(params):
        logits = apply(params, images)
        return jnp.sum(logits * weights), logits

    ours, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    expected = renamed({n: p.grad for n, p in oracle.named_parameters()}, kind)
    errors = {n: worst(g, expected[n]) for n, g in flatten_with_names(ours).items()}
    assert len(errors) == len(list(oracle.parameters()))
    return {"logits": worst(logits, theirs.detach().numpy()), **errors}
