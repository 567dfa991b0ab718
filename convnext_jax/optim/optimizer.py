"""AdamW as the reference runs it."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import optax

from convnext_jax.optim.param_groups import decay_mask, layer_scales, stage_scales


def create_optimizer(
    learning_rate: optax.Schedule,
    *,
    weight_decay: float | optax.Schedule = 0.05,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip_norm: float | None = None,
    layer_decay: float = 1.0,
    layer_decay_by: str = "blocks",
    depths: Sequence[int] = (),
    trained: Any = None,
) -> optax.GradientTransformation:
    """AdamW with PyTorch's semantics: a step moves p by `-lr * (adam + weight_decay * p)`.

    The decay is multiplied by the *scheduled* learning rate, and applies where `decay_mask` says.
    Moments are float32 like the parameters.

    Args:
      learning_rate: schedule over optimiser steps.
      weight_decay: the decay's factor, before the learning rate; or its schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the bias-corrected second moment.
      clip_norm: gradients with a larger global norm are scaled down to it; None for no clipping.
      layer_decay: scales the learning rate, and so the weight decay too.
      layer_decay_by: `blocks`, see `layer_scales`, or `stages`, see `stage_scales`.
      depths: of the model, where `layer_decay` is not 1.
      trained: tree of bool like the parameters (`param_groups.trained`): what is False has no
        moments, and its gradient, which is zero, goes out as it comes in; None: all are trained.

    Returns:
      The chain. Its state's arrays follow the order of the parameter tree.
    """
    steps = [
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
    ]
    scales = {"blocks": layer_scales, "stages": stage_scales}[layer_decay_by]
    if layer_decay != 1:
        steps.append(
            optax.stateless(
                lambda updates, _: jax.tree.map(
                    operator.mul, updates, scales(updates, depths, layer_decay)
                )
            )
        )
    steps.append(optax.scale_by_learning_rate(learning_rate))
    if clip_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(clip_norm))
    chain = optax.chain(*steps)
    return chain if trained is None else optax.masked(chain, trained)
