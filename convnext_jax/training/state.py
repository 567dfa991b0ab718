"""What a training run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes; randomness is not here, it follows from (seed, step).

    Attributes:
      step: optimiser steps taken, int32 scalar.
      params: parameter tree, float32.
      ema: moving average of `params`, or None where the run keeps none.
      opt_state: the optimiser's moments and counts.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: optax.OptState


def initial_state(
    params: Any, optimizer: optax.GradientTransformation, *, with_ema: bool
) -> TrainState:
    """The state before the first step.

    Args:
      params: parameter tree.
      optimizer: gives its own first state.
      with_ema: whether to keep a moving average, which starts as a copy of the parameters.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy, because the step donates both and XLA refuses one buffer donated twice.
        ema=jax.tree.map(jnp.copy, params) if with_ema else None,
        opt_state=optimizer.init(params),
    )
